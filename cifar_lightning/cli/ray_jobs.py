"""Jobs of a sweep under Ray, on this machine: as many at once as fit, and each is told of when it ends."""

import math
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.cli.remote_job import JobStopped, failed
from cifar_lightning.errors import RunError, UserError, in_words, one_line, shortened
from cifar_lightning.runs.signals import signals

Tell = Callable[[int, Sequence[str], Any], None]
"""Called with number, overrides and result of a job that has ended, or with the exception that it has ended by."""

_SECONDS_BETWEEN_LOOKS = 1.0

_UNLIMITED = 1_000_000

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # what is run here is nobody's business
    "RAY_AUTH_MODE": "token",  # whoever may connect to Ray may run anything
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # without it Ray listens on the loopback interface alone
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` Ray would pack the working directory, data and all, for jobs
    "RAY_worker_niceness": "0",  # 15 by itself, which makes way for whatever else runs
}
"""Environment variables that Ray 2.60 reads at import and at start, for it and its processes."""


def set_up_ray() -> None:
    """Set Ray's environment variables, where the user has not; called before anything imports Ray."""
    for name, value in {**_SETTINGS, "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items():
        os.environ.setdefault(name, value)


class RayJobs(Launcher):
    """Has Hydra's Ray launcher launch the jobs of a sweep, under a Ray of their own.

    No more jobs are handed to Ray than fit, so that at a signal those that run save, and no further one begins. A
    process that is killed takes its own job alone with it.

    Args:
        launcher: Hydra's.
        config: That of the sweep.
        tell: See ``Tell``.
    """

    def __init__(self, launcher: Launcher, config: DictConfig, tell: Tell) -> None:
        self._launcher, self._tell = launcher, tell
        self._config = config.hydra.launcher.ray
        self._folder: str | None = None
        self._at_once = 1

    def setup(self, **options: Any) -> None:
        raise NotImplementedError  # the sweeper has set up Hydra's

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Launch jobs, and wait for them.

        Returns:
            What they return, in their order; ``JobStopped`` for those that have not begun, as a signal has come.

        Raises:
            UserError: If Ray does not start as it is configured, or no job would ever fit.
        """
        from cifar_lightning.patches import ray_jobs_by  # late, as it imports torch

        self._start()
        batch = _Batch(job_overrides, initial_job_idx, self._at_once, self._tell)
        try:
            with ray_jobs_by(batch.submit, batch.result_of):
                return self._launcher.launch(job_overrides, initial_job_idx=initial_job_idx)
        except _NoMore:
            return batch.returned()

    def _start(self) -> None:
        import ray  # late, as it is an extra

        from cifar_lightning.patches import ray_keeps_to_itself

        if ray.is_initialized():  # for an earlier batch
            return
        options, wanted = self._options("init"), self._options("remote")
        self._at_once = _jobs_that_fit(options, wanted)
        try:
            if wanted:
                ray.remote(**wanted)(_nothing)  # which refuses what is no option of it
            self._folder = tempfile.mkdtemp(prefix="ray-", dir=_short_folder())  # which nobody else can enter
            with ray_keeps_to_itself():
                # A folder within it, as Ray lets everybody write into the one that it is given.
                ray.init(**{"_temp_dir": str(Path(self._folder, "r")), **options})
        except (AssertionError, ConnectionError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"hydra.launcher.ray: {shortened(one_line(error), 400)}") from error
        finally:
            _take_signals_back()

    def _options(self, key: str) -> dict[str, Any]:
        options = OmegaConf.to_container(self._config[key], resolve=True)
        return {str(name): value for name, value in options.items()} if isinstance(options, dict) else {}

    def close(self) -> None:
        """End Ray, if it has been started for these jobs."""
        if self._folder is not None:
            import ray

            try:
                ray.shutdown()
            finally:
                shutil.rmtree(self._folder, ignore_errors=True)


class _NoMore(Exception):
    """A signal has come, and those jobs that had begun have ended."""


class _Batch:
    """Jobs that Hydra's launcher launches, by their places among them."""

    def __init__(self, overrides: Sequence[Sequence[str]], first: int, at_once: int, tell: Tell) -> None:
        self._overrides, self._first, self._at_once, self._tell = overrides, first, at_once, tell
        self._begun = 0
        self._running: dict[Any, int] = {}
        self._ended: dict[int, JobReturn] = {}

    def submit(self, begin: Callable[[], Any]) -> int:
        """Begin the next job once it fits; gives its place."""
        while len(self._running) >= self._at_once and signals.requested is None:
            self._wait()
        if signals.requested is not None:
            while self._running:
                self._wait()
            raise _NoMore
        place, self._begun = self._begun, self._begun + 1
        self._running[begin()] = place
        return place

    def result_of(self, place: int) -> JobReturn:
        """Wait for the end of a job."""
        while place not in self._ended:
            self._wait()
        return self._ended[place]

    def returned(self) -> list[JobReturn]:
        """What all jobs have returned, those that have not begun among them."""
        not_begun = JobStopped("stopped before it began")
        return [
            self._ended.get(place) or failed(overrides, not_begun) for place, overrides in enumerate(self._overrides)
        ]

    def _wait(self) -> None:
        import ray

        for job in ray.wait(list(self._running), timeout=_SECONDS_BETWEEN_LOOKS)[0]:
            place = self._running.pop(job)
            self._ended[place] = returned = _returned(job, self._overrides[place])
            result = returned._return_value
            if not (signals.requested is not None and isinstance(result, JobStopped)):
                self._tell(self._first + place, self._overrides[place], result)


def _take_signals_back() -> None:
    """Have Python see signals again: Ray's library in C++ aborts the process three seconds after SIGTERM."""
    signals.install()
    if signals.requested is not None:  # it has come meanwhile
        signal.alarm(0)


def _returned(job: Any, overrides: Sequence[str]) -> JobReturn:
    import ray
    from ray.exceptions import LocalRayletDiedError, OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

    again = "the same command, with the same output_dir, resumes it"
    try:
        return ray.get(job)
    except OutOfMemoryError:
        return failed(overrides, RunError(f"Ray has ended its process, as memory ran out: run fewer at once; {again}"))
    except WorkerCrashedError:
        if signals.requested is not None:  # which ends a process that still imports
            return failed(overrides, JobStopped("stopped as it began"))
        killed = "its process was killed, as the system does where memory runs out, or has crashed"
        return failed(overrides, RunError(f"{killed}; {again}"))
    except RayTaskError as error:  # of what is around the job
        cause = error.cause or error
        return failed(overrides, RunError(shortened(in_words(cause), 400)))
    except LocalRayletDiedError:  # which ends all jobs
        raise
    except RayError as error:  # of a result that cannot be had
        return failed(overrides, RunError(f"{shortened(in_words(error), 400)}; {again}"))


def _jobs_that_fit(options: dict[str, Any], wanted: dict[str, Any]) -> int:
    """How many jobs run at once, as far as the options tell; Ray itself waits for what they leave to it.

    Args:
        options: Of ``ray.init``.
        wanted: Options of ``ray.remote``.

    Raises:
        UserError: If that is none.
    """
    there = {"CPU": options.get("num_cpus"), "GPU": options.get("num_gpus"), **(options.get("resources") or {})}
    amounts = {"CPU": wanted.get("num_cpus", 1), "GPU": wanted.get("num_gpus"), **(wanted.get("resources") or {})}
    fitting = [_UNLIMITED]
    for name, amount in amounts.items():
        has = there.get(name, 0)
        if not isinstance(has, int | float) or not isinstance(amount, int | float) or amount <= 0:
            continue
        fitting.append(math.floor(has / amount + 1e-9))
        if fitting[-1] == 0:
            kind = f"num_{name.lower()}s" if name in ("CPU", "GPU") else f"resources.{name}"
            raise UserError(
                f"hydra.launcher.ray.remote.{kind} must be at most {has:g}, which is all there is, got {amount:g}: "
                "lower it, or what it follows from, such as trainer.devices and num_threads"
            )
    return min(fitting)


def _short_folder() -> str | None:
    """Where Ray's folder is put: the paths of sockets in it may not be long."""
    return "/tmp" if Path("/tmp").is_dir() else None


def _nothing() -> None:
    pass
