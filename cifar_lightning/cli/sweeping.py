"""A sweep in the process that launches its jobs: they are checked before the first one runs, and noted as they end."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning.cli.launching import NotedLauncher, ResultsOf, refuse_missing, runs_here, uses_ray
from cifar_lightning.cli.ray_jobs import RayJobs
from cifar_lightning.cli.remote_job import NotFinished
from cifar_lightning.errors import RunError, UserError, in_words
from cifar_lightning.report.console import say
from cifar_lightning.runs.signals import Stopped, signals

CheckJob = Callable[[DictConfig, Path], None]
"""Takes the config of a sweep's job and the folder that is for it; may refuse the sweep."""

AfterSweep = Callable[[Path], None]
"""Takes the folder of a sweep whose jobs have run."""


@dataclass
class Job:
    """One job, as the list at the end of a sweep tells of it."""

    number: int
    overrides: str
    outcome: str
    failed: bool

    @classmethod
    def of(cls, number: int, overrides: Sequence[str], typed: Sequence[str], result: Any) -> "Job":
        """A job by what it has returned, or the exception that it has ended by."""
        swept = [override for override in overrides if override not in typed]  # the others are the same for all jobs
        if isinstance(result, NotFinished):
            outcome = str(result)
        elif isinstance(result, BaseException):
            outcome = f"failed: {error_line(result)}"
        else:
            outcome = "done" if result is None else f"done: {result:.4f}"
        return cls(number, " ".join(swept or overrides), outcome, isinstance(result, BaseException))

    def tell_end(self) -> None:
        """Say on the console that the job has just ended."""
        if self.failed:
            say(f"error: job {self.number} ({self.overrides}): {self.outcome.removeprefix('failed: ')}", "stderr")
        else:
            say(f"job {self.number}  {self.overrides}  {self.outcome}")


@dataclass
class Sweep:
    """What is done around the jobs of a sweep; see ``run``."""

    check: CheckJob | None
    returned: str | None
    after: AfterSweep | None
    folder: Path | None = None  # once its jobs are launched


def current_job(typed: Sequence[str], result: Any) -> Job:
    """The job that runs now, by what it has returned or the exception that it has ended by."""
    config = HydraConfig.get()
    return Job.of(config.job.num, list(config.overrides.task), typed, result)


@contextmanager
def checked_jobs(sweep: Sweep, jobs: list[Job]) -> Iterator[None]:
    """Have ``sweep.check`` see each job of a sweep that goes through all values, before the first of them runs.

    Those that an earlier command has finished are left out, and noted among ``jobs``.
    """
    from cifar_lightning.patches import before_sweeps, watched_jobs  # late, as it imports torch

    with ExitStack() as stack:
        checked = _CheckedJobs(sweep, jobs, stack)
        with before_sweeps(refuse_missing, checked.prepare), watched_jobs(checked.check, checked.find):
            yield


class _CheckedJobs:
    """What is done with the jobs of one sweep between Hydra's sweeper and its launcher.

    Args:
        sweep: See ``Sweep``; its folder is noted once jobs are launched.
        jobs: Takes those that have ended in other processes, or before.
        stack: Left when the sweep is over.
    """

    def __init__(self, sweep: Sweep, jobs: list[Job], stack: ExitStack) -> None:
        from cifar_lightning.cli.finished_jobs import FinishedJobs  # late, as it imports torch

        self._sweep, self._jobs, self._stack = sweep, jobs, stack
        self._noted: set[int] = set()
        self._finished = None if sweep.returned is None else FinishedJobs(sweep.returned, self._note)

    def prepare(self, sweeper: Sweeper) -> None:
        """Refuse a foreign folder, and have the sweeper's launcher note its jobs and leave out the finished ones."""
        from cifar_lightning.runs.folder import refuse_foreign_sweep  # late, as it imports torch

        assert sweeper.config is not None
        assert sweeper.launcher is not None
        folder = Path(os.path.abspath(sweeper.config.hydra.sweep.dir))
        refuse_foreign_sweep(Path(sweeper.config.hydra.sweep.dir))
        if uses_ray(sweeper.config):
            sweeper.launcher = RayJobs(sweeper.launcher, sweeper.config, _tell)
            self._stack.callback(sweeper.launcher.close)
        results_of: ResultsOf = _no_results
        if self._finished is not None and not optimises(sweeper.config.hydra):
            self._finished.prepare(sweeper)
            results_of = self._finished.results_of
        if not runs_here(sweeper.config.hydra):
            sweeper.launcher = NotedLauncher(sweeper.launcher, sweeper.config, self._note, results_of)
        launcher: Any = sweeper.launcher
        launch = launcher.launch

        def launch_noted(*arguments: Any, **options: Any) -> Any:
            self._sweep.folder = folder
            return [_Told(**vars(job)) for job in launch(*arguments, **options)]

        launcher.launch = launch_noted

    def check(self, config: DictConfig, number: int) -> None:
        """Have ``sweep.check`` see a job's config and the folder that is for it."""
        if self._sweep.check is None or optimises(config.hydra):
            return
        config.hydra.job.num = number
        try:
            folder = Path(config.hydra.sweep.dir, str(config.hydra.sweep.subdir))
        except OmegaConfBaseException:  # a name that only the running job knows
            return
        with open_dict(config):
            del config["hydra"]  # Hydra drops this config afterwards, and the node is the larger part to go through
        self._sweep.check(config, folder)

    def find(self, overrides: Sequence[str], number: int) -> bool:
        """Whether a job is known to be finished."""
        return self._finished is not None and self._finished.find(overrides, number)

    def _note(self, number: int, overrides: Sequence[str], result: Any) -> None:
        if number not in self._noted:
            self._noted.add(number)
            self._jobs.append(Job.of(number, overrides, sys.argv, result))


class _Told(JobReturn):
    """The return of a job whose end has been told: Hydra's own writes another line where it raises an error."""

    @property  # type: ignore[misc]  # set by Hydra, on its own
    def return_value(self) -> Any:
        """What the job has returned.

        Raises:
            Exception: That which it has ended by.
        """
        if self.status == JobStatus.FAILED:
            raise self._return_value
        return super().return_value


def _tell(number: int, overrides: Sequence[str], result: Any) -> None:
    for text in getattr(result, "__notes__", ()):  # a traceback, where it is asked for
        sys.stderr.write(text)
    Job.of(number, overrides, sys.argv, result).tell_end()


def _no_results(jobs: dict[int, Sequence[str]]) -> dict[int, float | None]:
    return {}


def optimises(config: Any) -> bool:
    """Whether the sweeper of a ``hydra`` node chooses jobs by results; Hydra's own goes through all values."""
    return not config.sweeper._target_.endswith(".BasicSweeper")


def end_sweep(sweep: Sweep) -> None:
    """Do what comes after the jobs of a sweep; an error in it is a warning."""
    if sweep.after is None or sweep.folder is None:
        return
    try:
        with signals:
            sweep.after(sweep.folder)
    except (Exception, Stopped) as error:
        say(f"warning: the jobs of {sweep.folder} are not compared: {error_line(error)}", "stderr")


def error_line(error: BaseException) -> str:
    """An error in one line, with how to see more of one that was not foreseen."""
    if isinstance(error, UserError | RunError):
        return str(error).replace("\n", " ")  # a library's own words may have line breaks
    return f"{in_words(error)} (HYDRA_FULL_ERROR=1 shows where)"
