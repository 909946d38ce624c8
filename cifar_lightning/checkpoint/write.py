"""How files are written: whole at every moment."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cifar_lightning.errors import RunError, one_line
from cifar_lightning.files import TEMPORARY, own_folder

_IS_TEMPORARY = re.compile(rf"\..+\.[a-z0-9_]{{8}}{re.escape(TEMPORARY)}")
"""Names of files that are being written: mkstemp puts eight characters before the suffix."""


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that its name stands for the old content or the new one, whole, whatever happens meanwhile.

    Raises:
        RunError: If it cannot be written; the file is then what it was.
    """
    with durable_file(path, num_bytes=len(content)) as file:
        file.write(content)


@contextmanager
def durable_file(path: Path, *, num_bytes: int | None = None) -> Iterator[BinaryIO]:
    """A file to write into that takes its name once it is whole, so that the name stands for the old or the new one.

    Written beside its place (another folder may be on another device, where moving is copying), brought to the disk,
    then renamed. Where the writing raises, the file is removed.

    Args:
        path: Its name.
        num_bytes: How many bytes it will have, where that is known.

    Raises:
        RunError: If it cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)  # mkstemp's are for the owner alone
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(cannot_write(path, error, num_bytes=num_bytes)) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


@contextmanager
def durable_files(folder: Path) -> Iterator[Path]:
    """A folder to write files into, each of which then takes its place in ``folder``.

    They may be opened and checked meanwhile. Where that raises, they are removed, and ``folder`` is what it was.

    Args:
        folder: Held by this process alone.

    Raises:
        RunError: If they cannot be written, or a link or a folder is in the place of one or of a folder of theirs.
    """
    temporary = folder / f".unchecked{TEMPORARY}"
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        temporary.mkdir(parents=True)
        yield temporary
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        for file in files:
            below = file.relative_to(temporary)
            for parent in list(below.parents)[:-1]:
                own_folder(folder / parent)
            if (folder / below).is_dir():
                raise IsADirectoryError(f"a folder is in the place of {below}")
        for file in files:
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
            place = folder / file.relative_to(temporary)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
            _sync_folder(place.parent)
    except OSError as error:
        raise RunError(cannot_write(folder, error)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()
"""Read once: to read it is to change it for a moment, for all threads."""


def _sync_folder(folder: Path) -> None:
    """Bring a renaming to the disk, where the system has such a call for folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP):
            raise


def cannot_write(path: Path, error: OSError, *, num_bytes: int | None = None) -> str:
    """Why a file cannot be written, and what helps.

    Args:
        path: The file, which was to be replaced.
        error: What the system has answered.
        num_bytes: How many bytes it needs, where that is known.
    """
    kept = "; the one before it is whole" if path.is_file() else ""
    if error.errno == errno.EFBIG:
        return f"{path} cannot be written: files may not be that large here{kept}. Raise the limit (ulimit -f)"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        needed = "" if num_bytes is None else f"it needs {num_bytes:,} bytes, "
        return f"{path} cannot be written: {os.strerror(error.errno)}; {needed}{free:,} are free{kept}. Make room first"
    return f"{path} cannot be written: {one_line(error)}{kept}"


def sweep_temporary(folder: Path) -> None:
    """Remove what interrupted saves of this project have left in a folder that no other run writes into."""
    with contextlib.suppress(OSError):  # of a folder that is not there yet, or cannot be written: the run will say so
        for found in os.scandir(folder):
            if _IS_TEMPORARY.fullmatch(found.name) and found.is_file(follow_symlinks=False):
                os.unlink(found.path)
