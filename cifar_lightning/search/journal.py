"""The file in which Optuna keeps a study, with a lock that a killed process leaves free."""

import os
from contextlib import ExitStack
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from cifar_lightning.errors import UserError, one_line
from cifar_lightning.files import own
from cifar_lightning.locks import held

JOURNAL = "journal.log"


class SystemLock(JournalFileOpenLock):
    """A lock of the system's in place of Optuna's, which a killed process would hold for another 30 seconds.

    Whoever gets it cuts off what a killed process has left of a line: with the next one behind it, the journal could
    not be read any more.

    Args:
        path: Of the journal.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path
        self._stack = ExitStack()

    def acquire(self) -> bool:
        self._stack.enter_context(held(self._path.with_name(f".{self._path.name}.lock"), waits=lambda owner: None))
        _mend(self._path)
        return True

    def release(self) -> None:
        self._stack.close()


def _mend(path: Path) -> None:
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(max(0, size - 1_000_000))  # more than a line takes
        start, tail = file.tell(), file.read()
        file.truncate(start + tail.rfind(b"\n") + 1)


def open_journal(folder: Path) -> JournalStorage:
    """The storage of a study, which may come from anyone; it is made if there is none.

    Args:
        folder: Of the study.

    Raises:
        UserError: If it cannot be used.
    """
    path = folder / JOURNAL
    try:
        own(path)
        lock = SystemLock(path)
        backend = JournalFileBackend(str(path), lock)
        lock.acquire()
        lock.release()
        return JournalStorage(backend)
    except OSError as error:
        raise UserError(f"study={folder} cannot be used: {one_line(error)}") from error
    except Exception as error:  # whatever Optuna raises of what else may stand there
        raise UserError(
            f"study={folder}: {path} is no journal of Optuna's, or damaged ({one_line(error)}); search in "
            " another folder"
        ) from error
