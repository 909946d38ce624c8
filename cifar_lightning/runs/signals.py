"""Signals that ask a run to stop: at once, or at the next step that it can be resumed from."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from cifar_lightning.report.console import say

SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name)
]
"""Ctrl-C; the schedulers' word that time is up; SLURM's early warnings; a terminal that has gone."""


class Stopped(BaseException):
    """A signal has ended the run. No Exception, so that a sweep's other jobs are not run either.

    Args:
        signum: Number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 130 if signum == signal.SIGINT else 143
        self.advice = ""


def leave_now(stopped: Stopped) -> None:
    """End the process on the spot."""
    os._exit(stopped.exit_code)


class Signals:
    """Context in which a signal of ``SIGNALS`` ends the run by raising ``Stopped``.

    Where ``deferred`` is true, the signal is only kept in ``requested``, for whoever trains to save first and stop
    then. A second Ctrl-C ends the process on the spot, and so does any signal during an import: torch's own code would
    take an exception for an error of its own, or drop it. Files are whole at each moment.

    Attributes:
        taken: The signals that are taken.
        told: Called with the number of a signal that is deferred, when it comes; None calls nothing.
        leave: Called where a signal comes during an import, with the handlers of before in place; ends the process.
    """

    def __init__(self) -> None:
        self.taken: Sequence[int] = SIGNALS
        self.told: Callable[[int], None] | None = None
        self.leave: Callable[[Stopped], None] = leave_now
        self.deferred = False
        self.requested: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
            handlers = {signum: signal.getsignal(signum) for signum in self.taken}
            # What is ignored stays so: nohup does that, for a run to outlive its terminal.
            self._before = {signum: handler for signum, handler in handlers.items() if handler is not signal.SIG_IGN}
            self.install()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._put_back()
        self.deferred, self.requested, self._before = False, None, {}

    def _put_back(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def install(self) -> None:
        """Take the signals (back): Lightning puts a handler of its own before this one for each fit or test."""
        if threading.current_thread() is threading.main_thread():
            for signum in self._before:
                signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            if signum == signal.SIGINT:
                os._exit(130)  # Lightning ignores Ctrl-C while it cleans up
            return
        self.requested = signum
        if self.deferred:
            if self.told is not None:
                self.told(signum)
            return
        stopped = Stopped(signum)
        if _is_importing(frame):
            say(str(stopped), "stderr")
            self._put_back()
            self.leave(stopped)
        raise stopped

    def stop_if_requested(self) -> None:
        """Raise ``Stopped`` if a signal has come."""
        if self.requested is not None:
            raise Stopped(self.requested)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


signals = Signals()
"""Those of this process."""


OF_GROUPS = [getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
"""Signals that a terminal, or Slurm, sends to all of its processes; this one tells those that it has started."""


@contextmanager
def blocked_for_children() -> Iterator[None]:
    """Have processes that are started meanwhile get no signals of a group; this one's handlers still run.

    What the main thread blocks, its children inherit. Another thread takes the signals, for Python to handle them in
    the main thread.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before, is_over = signal.getsignal(signal.SIGQUIT), threading.Event()
    taker = threading.Thread(target=is_over.wait, daemon=True)
    taker.start()
    signal.pthread_sigmask(signal.SIG_BLOCK, OF_GROUPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_GROUPS)
        is_over.set()
        taker.join()
        signal.signal(signal.SIGQUIT, before)
