"""Which image files are meant by what is typed: files, folders and patterns."""

import glob
import os
from collections.abc import Iterable

from cifar_lightning.data.formats import EXTENSIONS
from cifar_lightning.data.litter import is_litter
from cifar_lightning.data.scan import Problems, find_in_folder
from cifar_lightning.errors import printable


def named_files(names: Iterable[str]) -> tuple[list[str], Problems]:
    """The files that names stand for, each once.

    Args:
        names: Paths of files or folders, and patterns such as ``holiday/*.jpg``. The images of a folder are those with
            the extensions of ``formats.EXTENSIONS``, also in nested folders, sorted by path. ``**`` in a pattern stands
            for any folders. What systems leave behind is passed over.

    Returns:
        The files, by path as given; and what is wrong with those that cannot be images, by path. The latter are among
        the files.

    Raises:
        ValueError: If a name stands for no file.
    """
    files: list[str] = []
    problems: Problems = {}
    for name in names:
        found = _files_of(name, problems)
        if not found:
            raise ValueError(_why_none(name))
        files += found
    return list(dict.fromkeys(files)), problems


def _files_of(name: str, problems: Problems) -> list[str]:
    if os.path.isdir(name):
        return _in_folder(name, problems)
    if os.path.lexists(name):
        return [_checked(name, problems)]
    found: list[str] = []
    for path in sorted(glob.glob(name, recursive=True)):
        if os.path.isdir(path):
            # A pattern with ** gives each folder and each file below it, too.
            found += [] if "**" in name else _in_folder(path, problems)
        elif not is_litter(os.path.basename(path)):
            found.append(_checked(path, problems))
    return found


def _in_folder(folder: str, problems: Problems) -> list[str]:
    files: list[str] = []
    faults: Problems = {}
    find_in_folder(folder, folder.rstrip("/") or folder, files, faults)
    problems |= faults
    return sorted([*files, *faults])


def _checked(path: str, problems: Problems) -> str:
    """A path; opening what is no regular file, such as a named pipe, could wait for ever."""
    if not os.path.isfile(path):
        problems[path] = "not a file" if os.path.exists(path) else "a link to nothing"
    return path


def _why_none(name: str) -> str:
    shown = printable(name)
    if "://" in name:
        return f"images={shown} is an address: download the pictures first and give their path"
    if os.path.isdir(name):
        return f"images={shown} is a folder without images (files that end in {' '.join(EXTENSIONS)})"
    if glob.has_magic(name):
        return f"images={shown}: the pattern matches no file"
    return f"images={shown}: there is no such file or folder; several are given as a list, images=[a.jpg,b.jpg]"
