"""Files that may have come from anyone, and files that are opened in a folder which may have."""

import os
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path

from cifar_lightning.errors import UserError

TEMPORARY = ".cifar-lightning.tmp"
"""How the names of files end that are being written: whose they are can be seen."""


def regular(path: str | Path) -> int:
    """How many names a file has; 0 if there is none yet.

    Devices count as files: only the system's owner can make one.

    Raises:
        OSError: If a link or a pipe or the like is in its place.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return 0
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISCHR(status.st_mode)):
        kind = "a link" if stat.S_ISLNK(status.st_mode) else "no regular file"
        raise OSError(f"{path} is {kind}: there must be a plain file or none")
    return status.st_nlink


def own(path: str | Path) -> None:
    """See to it that what is written into a file stands there alone.

    Of a file with a second name (a hard link) a copy takes the place; the other name keeps what it has.

    Raises:
        OSError: If something else than a file is in its place, see ``regular``, or no copy can be made.
    """
    if regular(path) > 1:
        name = Path(path)
        descriptor, copy = tempfile.mkstemp(prefix=f".{name.name}.", suffix=TEMPORARY, dir=name.parent)
        os.close(descriptor)
        try:
            shutil.copy2(path, copy)
            os.replace(copy, path)
        except BaseException:
            os.unlink(copy)
            raise


def own_folder(path: Path) -> None:
    """See to it that what is written below a folder stands there: it is one, or nothing yet.

    Raises:
        OSError: If a link, a file or something else is in its place.
    """
    if path.is_symlink() or (os.path.lexists(path) and not path.is_dir()):
        kind = "a link" if path.is_symlink() else "no folder"
        raise OSError(f"{path} is {kind}: there must be a plain folder or none")


def opener(path: str, flags: int) -> int:
    """For ``open(path, "a", opener=opener)``: a file is made, or continued if it is the folder's own; see ``own``."""
    own(path)
    # Nor is a link followed that has come meanwhile, or a pipe waited for.
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def check_torch_archive(path: Path, *, kind: str, max_pickle_bytes: int) -> None:
    """Refuse what is no whole file as torch.save writes them, before anything in it is unpickled.

    Args:
        path: Of a regular file.
        kind: What the file is meant to be, for messages, such as ``a checkpoint of this project``.
        max_pickle_bytes: What its pickle, in which all but tensors is, may take.

    Raises:
        UserError: With the reason.
        OSError, zipfile.BadZipFile, ...: If the file cannot be read, or is damaged.
    """
    with path.open("rb") as file:
        starts_as_zip = file.read(2) == b"PK"
    if not starts_as_zip:
        raise UserError(f"{path} is not {kind}: not written by torch.save")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):  # a few bytes could become many
            raise UserError(f"{path} is not {kind}: it is compressed, as torch.save's are not")
        if len({member.filename for member in members}) < len(members):
            raise UserError(f"{path} is not {kind}: two of its members have one name")
        if any(member.file_size > max_pickle_bytes for member in members if member.filename.endswith(".pkl")):
            raise UserError(f"{path} is not {kind}: more than tensors and a config is in it")
        damaged = archive.testzip()  # torch.load itself does not look at the checksums
    if damaged:
        raise UserError(f"{path} is damaged: wrong checksum in {damaged}")
