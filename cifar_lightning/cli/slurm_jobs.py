"""Jobs of Slurm, followed by the process that has launched them: how each is, and what is left of one that is lost."""

import logging
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hydra.core.utils import JobReturn

from cifar_lightning.cli.remote_job import NotFinished, failed
from cifar_lightning.errors import RunError, shortened

log = logging.getLogger(__name__)

_ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
"""Slurm's words for a job that it does not start again; it tells them for minutes, then forgets the job."""

_FORGOTTEN, _UNKNOWN = "gone from the queue", "UNKNOWN"


class Queue:
    """Asks Slurm's queue how jobs are.

    It takes the place of submitit's watcher, which asks the accounting. Not each cluster has one, and without it a job
    that is killed would be waited for without an end.

    Args:
        period_s: Seconds between two questions, at most; it asks more often while jobs are new.
    """

    def __init__(self, period_s: float = 60) -> None:
        self._states: dict[str, str] = {}
        self._period_s = period_s
        self._began, self._asked = time.monotonic(), float("-inf")

    def register_job(self, job_id: str) -> None:
        """Follow a job, named as in ``squeue``: 12, or 12_3 in an array."""
        self._states.setdefault(job_id, _UNKNOWN)
        self._began, self._asked = time.monotonic(), float("-inf")

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether a job has ended for good.

        Args:
            job_id: As it was registered.
            mode: submitit's; ``force`` asks at once.
        """
        return self.get_state(job_id, mode) in {*_ENDED, _FORGOTTEN}

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        """Slurm's word for a job."""
        now = time.monotonic()
        if mode == "force" or now - self._asked > min(self._period_s, max(2, (now - self._began) / 10)):
            self._asked = now
            self._take(_listed())
        return self._states[job_id]

    def _take(self, listed: dict[str, str] | None) -> None:
        if listed is None:
            return
        for job_id, state in self._states.items():
            # One that the queue has never shown may belong to another cluster, or be hidden: its result tells.
            missing = state if state in {*_ENDED, _UNKNOWN} else _FORGOTTEN
            self._states[job_id] = listed.get(job_id, missing)


def _listed() -> dict[str, str] | None:
    """This user's jobs and their states; None where Slurm does not answer, which it may do later."""
    command = ["squeue", f"--user={os.geteuid()}", "--states=all", "--all", "--array", "--noheader", "--format=%i|%T"]
    # Such variables narrow what is listed.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    try:
        answer = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("squeue does not answer: %s", error)
        return None
    return dict(line.split("|", 1) for line in answer.stdout.splitlines() if "|" in line)


@contextmanager
def followed_jobs() -> Iterator[None]:
    """Have submitit ask Slurm's queue, and wait for all jobs of a sweep also where one is lost.

    The result of a lost one is an error. Raised, it would have Hydra's launcher leave the others alone.
    """
    from submitit.core.utils import FailedJobError, UncompletedJobError  # late, as they belong to an extra

    from cifar_lightning.patches import slurm_jobs_by  # late, as it imports torch

    def results(job: Any, wait: Callable[[], list[JobReturn]]) -> list[JobReturn]:
        try:
            return wait()
        except FailedJobError as error:
            trace = re.split(r"-{10,}", str(error))[1].strip()
            words = f"{shortened(trace.splitlines()[-1], 400)}; {job.paths.stderr} has the whole"
            return [failed((), RunError(words))]
        except UncompletedJobError:
            words = f"ended without a result (Slurm: {job.state}); {job.paths.stderr} has its last words"
            return [failed((), NotFinished(words))]

    with slurm_jobs_by(Queue(), results):
        yield
