"""Lock files: one process holds one at a time, also on a file system that has no locks."""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from cifar_lightning.files import opener, regular

log = logging.getLogger(__name__)

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What the system answers where a file system, such as some network ones, has no locks."""


class InUse(Exception):
    """Another process holds the lock; the message is a name for it, such as ``process 123``."""


@contextmanager
def held(path: Path, *, waits: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock file.

    The system releases the lock when the process ends, however it ends. A file system without locks has a file in place
    of it, which a killed process leaves behind; the next process on the same machine sees that its owner has gone.

    Args:
        path: The lock file, in an existing folder. It stays.
        waits: Called with a name for the process that holds it, before waiting for that; None: there is no waiting.

    Raises:
        InUse: If another process holds it, and there is no waiting.
        OSError: If the file is a link or no regular file, or cannot be written.
    """
    regular(path)
    lock: BaseFileLock = FileLock(path, fallback_to_soft=False)
    try:
        _acquire(lock, lambda: _owner(path), waits)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        lock = _acquired_without_locks(path.with_name(f"{path.name}.owner"), error, waits)
    else:
        with suppress(OSError):  # of a full disk: the lock holds without a name for its holder
            _sign(path)
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether another process holds a lock file now; where that cannot be known, it is taken for free."""
    owner = path.with_name(f"{path.name}.owner")
    try:
        for lock, place in ((FileLock(path, fallback_to_soft=False), path), (SoftFileLock(owner), owner)):
            if regular(place):
                lock.acquire(timeout=0)
                lock.release()
    except Timeout:
        return True
    except OSError:
        return False
    return False


def _sign(path: Path) -> None:
    """Write into a lock file, which may be anyone's, who holds it; nothing into one that has a second name."""
    if regular(path) == 1:
        with open(path, "w", opener=opener) as file:
            file.write(str(os.getpid()))


def _acquire(lock: BaseFileLock, owner: Callable[[], str], waits: Callable[[str], None] | None) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if waits is None:
            raise InUse(owner()) from error
        waits(owner())
        lock.acquire()


def _acquired_without_locks(path: Path, refusal: OSError, waits: Callable[[str], None] | None) -> SoftFileLock:
    lock = SoftFileLock(path)
    if not path.exists():
        log.warning(
            "%s is on a file system without locks (%s): a file says that it is in use, %s. If this process is killed "
            "and the next one is on another machine, remove that file by hand",
            *(path.parent, refusal.strerror, path.name),
        )
    gone = f"; if it runs on no machine any more, remove {path}"
    _acquire(lock, lambda: f"process {lock.pid}{gone}" if lock.pid else f"another process{gone}", waits)
    return lock


def _owner(path: Path) -> str:
    try:
        return f"process {int(path.read_text())}"
    except (OSError, ValueError):
        return "another process"
