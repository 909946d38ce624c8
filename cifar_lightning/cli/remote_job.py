"""A job of a sweep in a process of its own, as launchers start them: its signals, its console, and how it ends."""

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TypeVar

from hydra.core.utils import JobReturn, JobStatus

from cifar_lightning.errors import RunError, UserError, in_words, one_line
from cifar_lightning.report.console import Screen, screens
from cifar_lightning.runs.signals import SIGNALS, Stopped, leave_now, signals

T = TypeVar("T")

STOP_FILE = "CIFAR_LIGHTNING_STOP"
"""Environment variable: a file that is there once the launching process has got a signal, and holds its number."""

_OF_SUBMITIT = "SUBMITIT_EXECUTOR"
"""Environment variable that submitit sets in its jobs."""


class JobStopped(RunError):
    """A signal has stopped a job, which has saved if it could."""


class NotFinished(RunError):
    """A job has brought no result, as it or its launcher was killed."""


class JobExited(RunError):
    """A job has called ``sys.exit``.

    Args:
        message: Says so.
        code: The exit code.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message, code)
        self.code = code

    def __str__(self) -> str:
        return str(self.args[0])


def failed(overrides: Sequence[str], error: Exception) -> JobReturn:
    """What stands for the return of a job that has brought none; its value raises the error."""
    job = JobReturn(overrides=overrides, status=JobStatus.FAILED)
    job.return_value = error
    return job


def in_own_process(job: Callable[[], T], *, shows_traceback: bool) -> T:
    """Run a job of a sweep in this process, which a launcher has started for it.

    What it shows goes into its log file alone, as jobs that run side by side share one console. What it raises can be
    pickled: an exception of a library often cannot.

    Raises:
        UserError: What the job raises, in words; where it is to be shown, its traceback is a note of it.
        RunError: Likewise; ``JobStopped`` after a signal, ``JobExited`` after ``sys.exit``.
    """
    is_of_submitit = bool(os.environ.get(_OF_SUBMITIT))
    try:
        with screens(), signals, _watched_file(), _only_in_files():
            signals.leave = _hand_on_at_once if is_of_submitit else leave_now
            return job()
    except Stopped as stopped:
        if is_of_submitit:
            _hand_on(stopped)
        raise JobStopped(f"{stopped}{stopped.advice}") from None
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise JobExited(f"the job has ended itself with exit code {code}", code) from None
    except Exception as error:
        told = (
            type(error)(one_line(error))
            if isinstance(error, UserError | RunError)
            else RunError(f"{in_words(error)} (HYDRA_FULL_ERROR=1 shows where)")
        )
        if shows_traceback:
            traceback.print_exception(error)
            told.add_note("".join(traceback.format_exception(error)))  # for a launcher that keeps it off the console
        raise told from None


def _hand_on(stopped: Stopped) -> None:
    """Give a signal to submitit, now that the job has saved: at SIGUSR2 it puts the job into the queue again.

    After another signal the process ends without a result, as one that is killed would: the scheduler knows whether it
    starts the job again, and a result would end it for good.

    Raises:
        JobStopped: If submitit refuses, as after the time has been up too often.
    """
    handler = signal.getsignal(stopped.signum)
    for signum in SIGNALS:  # Slurm may send one twice; submitit 1.5 would trip over what it is about to write
        signal.signal(signum, signal.SIG_IGN)
    if callable(handler) and handler is not signal.default_int_handler:
        try:
            handler(stopped.signum, None)
        except SystemExit:  # of one that is in the queue
            pass
        except Exception as error:
            raise JobStopped(f"{stopped}; {one_line(error)}") from None
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    leave_now(stopped)


def _hand_on_at_once(stopped: Stopped) -> None:
    try:
        _hand_on(stopped)
    finally:
        leave_now(stopped)


@contextmanager
def _only_in_files() -> Iterator[None]:
    """Keep what is shown off the console, and leave it in log files."""
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
    with redirect_stdout(Screen(None, "stdout")):
        yield


@contextmanager
def _watched_file() -> Iterator[None]:
    """Take the launching process's word for a signal to this one."""
    path = os.environ.get(STOP_FILE)
    if path is None:
        yield
        return
    ended = threading.Event()
    if (signum := _signum_in(Path(path))) is not None:
        raise Stopped(signum)  # a job that would only begin

    def watch(path: Path) -> None:
        while not ended.wait(0.5):
            if _signum_in(path) is not None:
                os.kill(os.getpid(), signal.SIGTERM)  # as those of a group are blocked
                return

    threading.Thread(target=watch, args=(Path(path),), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _signum_in(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # it is about to be written
        return None
