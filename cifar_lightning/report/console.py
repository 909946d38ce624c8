"""The console and the log file: what is shown where, and that a run goes on where nothing can be shown.

Output is only for show. Standard output may be closed, as under a service or in a program without a console; it may be
a full disk, a pipe that nobody reads, or a terminal that does not know all characters. A run prints what can be
printed, and continues.
"""

import contextlib
import copy
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from cifar_lightning.errors import printable
from cifar_lightning.files import opener

_PLAIN = str.maketrans({**dict.fromkeys("┌┬┐├┼┤└┴┘", "+"), "─": "-", "│": "|", "…": "...", "±": "+-"})
"""What stands for the project's own signs where an encoding lacks them."""


class Screen:
    """A standard stream, as far as it can be written to; what is written never raises.

    Characters that its encoding lacks become plain ones or escapes. A stream that cannot be written to any more is left
    alone. One line on standard error says so, unless it has been closed, or its reader has gone, as with ``| head``.

    Args:
        stream: The stream; None, as Python has it where the stream is closed, shows nothing.
        name: What the line on standard error calls it.
    """

    def __init__(self, stream: Any, name: str) -> None:
        self._stream = stream
        self._name = name

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._write(self._stream, text)
            except (OSError, ValueError) as error:  # ValueError: it has been closed
                self._leave(error)
        return len(text)

    def _write(self, stream: Any, text: str) -> None:
        try:
            stream.write(text)
        except UnicodeEncodeError:
            encoding = stream.encoding or "ascii"
            stream.write(text.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding))

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._leave(error)

    def isatty(self) -> bool:
        try:
            return self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    @property
    def encoding(self) -> str:
        """As rich asks for it, to choose between lines and plain characters."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError(f"{self._name} is closed")
        return self._stream.fileno()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # such as those that copying looks for, before there is a stream
            raise AttributeError(name)
        return getattr(self._stream, name)

    def _leave(self, error: Exception) -> None:
        stream, self._stream = self._stream, None
        assert stream is not None
        _to_nowhere(stream)
        if self._name != "stderr" and isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            say(f"{self._name} cannot be written to ({error}): the run continues, its files have all", "stderr")


def _to_nowhere(stream: Any) -> None:
    """Have what a stream still holds go nowhere, or Python would fail at its end."""
    with contextlib.suppress(OSError, ValueError):
        number, nowhere = stream.fileno(), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def say(line: str, stream: str = "stdout") -> None:
    """Print a line, whatever names are in it, to ``stdout`` or ``stderr``."""
    with screens():
        print(printable(line), file=getattr(sys, stream), flush=True)


def _fill_standard_descriptors() -> None:
    """Have the descriptors 0 to 2 lead nowhere where they are closed.

    The next file to be opened would get such a number, and whatever writes to the standard output, such as a library in
    C, would write into a checkpoint.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                # It takes the lowest number that is free, which is this one; processes that are started have it too.
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


@contextmanager
def screens() -> Iterator[None]:
    """Make standard output and error ``Screen``s for whoever writes to them, Lightning, Hydra and rich among them."""
    _fill_standard_descriptors()
    out, err = (
        stream if isinstance(stream, Screen) else Screen(stream, name)
        for stream, name in ((sys.stdout, "stdout"), (sys.stderr, "stderr"))
    )
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            out.flush()
            err.flush()


class Lines(logging.Formatter):
    """Formats log records so that names in them cannot command a terminal or begin lines of their own.

    The line breaks of a message are the project's own, as in a table; those of what is put into it are not.
    """

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        if isinstance(record.args, tuple):
            record.args = tuple(map(_shown_safely, record.args))
        return printable(super().format(record), keep="\n\t")


def _shown_safely(argument: Any) -> Any:
    return printable(str(argument)) if isinstance(argument, str | os.PathLike | BaseException) else argument


class LogFile(logging.FileHandler):
    """The log file of a run, in UTF-8; where it cannot be written, one line on standard error says so.

    What is logged may be anyone's text. So it goes into a file of the folder itself, through no link.

    Args:
        filename: Its path.
        options: As of ``logging.FileHandler``.
    """

    def __init__(self, filename: str, **options: Any) -> None:
        super().__init__(filename, **{"encoding": "utf-8", **options})
        self._has_failed = False

    def _open(self) -> Any:
        return open(self.baseFilename, self.mode, encoding=self.encoding, errors=self.errors, opener=opener)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # of opening the file
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_failed:
            self._has_failed = True
            if self.stream is not None:
                _to_nowhere(self.stream)
            say(f"{self.baseFilename} cannot be written to ({error}): the run continues without it", "stderr")


@contextmanager
def on_screen() -> Iterator[None]:
    """Show what the project logs, also where nobody has set logging up, as in a notebook; all is put back at the end.

    Lightning's own lines of the same facts are left out, and warnings that no user could act on.
    """
    project, lightning = logging.getLogger("cifar_lightning"), logging.getLogger("lightning.pytorch")
    levels = project.level, lightning.level
    handler = None
    with screens():
        if not project.hasHandlers():
            handler = logging.StreamHandler(sys.stdout)
            handler.setFormatter(Lines("%(message)s"))
            project.addHandler(handler)
        if not project.isEnabledFor(logging.INFO):
            project.setLevel(logging.INFO)
        lightning.setLevel(logging.WARNING)
        try:
            with warnings.catch_warnings():
                # Of Lightning 2.6 over torch 2.14 and later.
                warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*", category=FutureWarning)
                # True of Lightning's own logging; TrainingCurves has a point at the end of each epoch too.
                warnings.filterwarnings(
                    "ignore", message="The number of training batches .* is smaller than the logging"
                )
                # Of ranks: what is logged is of the images of all of them.
                warnings.filterwarnings("ignore", message="It is recommended to use `self.log.*sync_dist=True")
                # On a machine that has Slurm: the project starts its processes itself, and needs no srun.
                warnings.filterwarnings("ignore", message="The `srun` command is available on your system but is not")
                yield
        finally:
            project.setLevel(levels[0])
            lightning.setLevel(levels[1])
            if handler is not None:
                project.removeHandler(handler)
