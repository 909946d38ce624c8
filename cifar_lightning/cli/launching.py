"""Launchers that run the jobs of a sweep in other processes: what is done around them."""

import importlib
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import RunMode
from omegaconf import DictConfig

from cifar_lightning.cli.ray_jobs import set_up_ray
from cifar_lightning.cli.remote_job import STOP_FILE, JobExited, JobStopped, NotFinished
from cifar_lightning.cli.slurm_jobs import followed_jobs
from cifar_lightning.config.schema import CONF
from cifar_lightning.errors import RunError, UserError, one_line, shortened
from cifar_lightning.runs.signals import Stopped, blocked_for_children, signals

_RAY = "hydra_ray_launcher"
_PACKAGES = {
    "hydra_joblib_launcher": ("joblib", "cluster"),
    "hydra_submitit_launcher": ("submitit", "cluster"),
    _RAY: ("ray", "ray"),
}
"""Packages of launchers, what they import late, and the extra that brings both."""

_LOCAL = (".JoblibLauncher", ".RayLauncher")
"""Ends of the names of those whose jobs run on this machine; the others leave them to a scheduler."""

Note = Callable[[int, Sequence[str], Any], None]
"""Called with number, overrides and result of a job, or with the exception that it has ended by."""


ResultsOf = Callable[[dict[int, Sequence[str]]], dict[int, float | None]]
"""Takes jobs, by number, and gives the results of those that have ended as far as files tell."""


class LauncherLost(RunError):
    """A launcher has ended before its jobs have."""


def refuse_missing(config: DictConfig) -> None:
    """Refuse a sweep whose launcher is not installed.

    Args:
        config: That of the sweep.

    Raises:
        UserError: If that is so; names the command that installs it.
    """
    target, package = str(config.hydra.launcher._target_), _package(config)
    if package in _PACKAGES:
        library, extra = _PACKAGES[package]
        if package == _RAY:
            set_up_ray()
        try:
            importlib.import_module(target.rpartition(".")[0])
            importlib.import_module(library)
        except ImportError as error:
            name = package.replace("_", "-")
            raise UserError(f"{name} is not installed: pip install -e '.[{extra}]'") from error


def take_own_launchers() -> None:
    """Have the launchers of conf/ configured by conf/ alone."""
    from cifar_lightning.patches import prefer_own_launchers  # late, as it imports torch

    prefer_own_launchers([path.stem for path in (CONF / "hydra" / "launcher").glob("*.yaml")])


def runs_here(hydra: Any) -> bool:
    """Whether a job runs in the process that launches it: a single one, or each of a sweep after the other.

    Args:
        hydra: The ``hydra`` node of its config, or of the sweep's.
    """
    return hydra.mode != RunMode.MULTIRUN or str(hydra.launcher._target_).endswith(".BasicLauncher")


def uses_ray(config: DictConfig) -> bool:
    """Whether the jobs of a sweep run under Ray.

    Args:
        config: That of the sweep.
    """
    return str(config.hydra.launcher._target_).endswith(".RayLauncher")  # the package has one for AWS, too


def _package(config: DictConfig) -> str:
    return f"{config.hydra.launcher._target_}.".split(".")[1]


class NotedLauncher(Launcher):
    """Has another launcher launch the jobs of a sweep, and notes how they went.

    Args:
        launcher: The other one.
        config: That of the sweep.
        note: See ``Note``.
        results_of: See ``ResultsOf``; asked where the launcher brings no results.
    """

    def __init__(
        self,
        launcher: Launcher,
        config: DictConfig,
        note: Note,
        results_of: ResultsOf,
    ) -> None:
        self._launcher, self._note, self._results_of = launcher, note, results_of
        self._is_local = str(config.hydra.launcher._target_).endswith(_LOCAL)
        self._is_slurm = str(config.hydra.launcher._target_).endswith(".SlurmLauncher")
        self._stop_file = Path(tempfile.gettempdir(), f"cifar-lightning-{uuid.uuid4().hex}.stop")

    def setup(self, **options: Any) -> None:
        raise NotImplementedError  # the sweeper has set up its own

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Launch jobs.

        Raises:
            Stopped: If a signal has come, once the jobs on this machine have saved.
            SystemExit: If a job has called ``sys.exit``, or has refused the whole sweep.
            LauncherLost: If the launcher has raised.
            UserError: If the launcher refuses how it is configured.
        """
        try:
            with self._around():
                returned = self._launcher.launch(job_overrides, initial_job_idx=initial_job_idx)
        except UserError:
            raise
        except Exception as error:
            self._note_from_files(dict(enumerate(job_overrides, initial_job_idx)))
            raise LauncherLost(_told(error)) from error
        for job, overrides in zip(returned, job_overrides, strict=True):
            job.overrides = overrides  # of a job that is lost, too
        results = [job._return_value for job in returned]
        is_stopped = signals.requested is not None
        for number, (overrides, result) in enumerate(zip(job_overrides, results, strict=True), initial_job_idx):
            if not (is_stopped and isinstance(result, JobStopped)):
                self._note(number, overrides, result)
        if is_stopped:
            stopped = Stopped(signals.requested or 0)
            words = (str(result) for result in results if isinstance(result, JobStopped))
            stopped.advice = next((f"; {advice}" for _, _, advice in (w.partition("; ") for w in words) if advice), "")
            raise stopped
        for result in results:
            if isinstance(result, JobExited):
                raise SystemExit(result.code)
        return returned

    def _around(self) -> AbstractContextManager[None]:
        if self._is_local:
            return _telling_jobs_of_signals(self._stop_file)
        return followed_jobs() if self._is_slurm else nullcontext()

    def _note_from_files(self, jobs: dict[int, Sequence[str]]) -> None:
        results = self._results_of(jobs)
        for number, overrides in jobs.items():
            self._note(number, overrides, results[number] if number in results else NotFinished("not finished"))


def _told(error: Exception) -> str:
    """A launcher's exception in one line, with what to do."""
    again = "the same command, with the same output_dir, runs what is not finished"
    if type(error).__name__ in ("TerminatedWorkerError", "BrokenProcessPool"):
        killed = " by SIGKILL, as the system does where memory runs out" if "SIGKILL" in str(error) else ""
        return f"a process of the sweep was killed{killed}; the others have been ended: {again}"
    text = re.sub(r"\s*-{5,}\s*", " ", one_line(error))
    return f"{type(error).__name__} of the launcher: {shortened(text, 400)}; {again}"


@contextmanager
def _telling_jobs_of_signals(path: Path) -> Iterator[None]:
    """Have the jobs stop at a signal to this process, and wait for them to save.

    Args:
        path: A file that is not there yet; the same for all batches of a sweep, as processes go from one to the next.
    """

    def tell(signum: int) -> None:
        draft = path.with_suffix(".tmp")
        draft.write_text(str(int(signum)))
        os.replace(draft, path)

    signals.deferred, signals.told = True, tell
    os.environ[STOP_FILE] = str(path)
    try:
        if signals.requested is not None:  # before they could be told
            tell(signals.requested)
        with blocked_for_children():
            yield
    finally:
        del os.environ[STOP_FILE]
        signals.deferred, signals.told = False, None
        path.unlink(missing_ok=True)
