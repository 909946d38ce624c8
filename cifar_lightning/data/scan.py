"""Which images are in a folder, such as those of a split's classes, and what there cannot be used."""

import os
from pathlib import Path

from cifar_lightning.data.formats import EXTENSIONS, why_not_by_name
from cifar_lightning.data.layout import is_folder, nearest_class
from cifar_lightning.data.litter import is_hidden, is_litter

Problems = dict[str, str]
"""What is wrong with a file or folder, by its path below the root."""


def find_images(root: Path, folder: str, classes: list[str], problems: Problems) -> list[list[str]]:
    """Find the images of a split.

    Args:
        root: Folder of all splits.
        folder: Name of the split's folder.
        classes: Names of the classes.
        problems: Receives what cannot be used.

    Returns:
        Paths of the images below the root: a sorted list for each class.
    """
    found: dict[str, list[str]] = {name: [] for name in classes}
    for entry in _entries(root / folder, folder, problems):
        path = f"{folder}/{entry.name}"
        if is_litter(entry.name):
            continue
        if not is_folder(entry):
            problems[path] = _why_no_file(entry) or "not in the folder of a class"
        elif entry.name not in found:
            problems[path] = f"not a class of train/{nearest_class(entry.name, classes)}"
        elif fault := _fault_of_name(entry.name):
            problems[path] = fault
        else:
            find_in_folder(entry.path, path, found[entry.name], problems)
    return [sorted(files) for files in found.values()]


def _entries(folder: str | Path, below_root: str, problems: Problems) -> list["os.DirEntry[str]"]:
    """What is in a folder."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:  # such as a folder that may not be read
        problems[below_root] = _reason(error)
        return []


def _fault_of_name(name: str) -> str | None:
    """Why a class cannot have this name: it is written into checkpoints and tables, as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "a class whose name is not valid UTF-8: rename it"
    has_visible = any(c.isprintable() and not c.isspace() for c in name)
    return None if has_visible else "a class whose name has no visible character: rename it"


def find_in_folder(folder: str, shown: str, files: list[str], problems: Problems) -> None:
    """Add the images in a folder to ``files``, also those in nested folders, in no order.

    Args:
        folder: Path of the folder.
        shown: What the paths of the images and of what cannot be used begin with, in place of ``folder``.
        files: Receives the paths of the images.
        problems: Receives what cannot be used.
    """
    todo: list[tuple[str, str, tuple[str, ...]]] = []

    def enter(real: str, path: str, containing: tuple[str, ...]) -> None:
        """Note a folder as one to look into. ``containing`` has the real paths of those where links led away."""
        if os.path.islink(real):
            containing = (*containing, os.path.realpath(os.path.dirname(real)))
            target = os.path.realpath(real)
            if any(Path(folder).is_relative_to(target) for folder in containing):
                problems[path] = "a link to a folder that contains it"
                return
        todo.append((real, path, containing))

    enter(folder, shown, ())
    while todo:
        inside, path_of_folder, containing = todo.pop()
        for entry in _entries(inside, path_of_folder, problems):
            path = f"{path_of_folder}/{entry.name}"
            if is_hidden(entry.name):
                if entry.name.endswith(".icloud"):  # stands for a file: .0.png.icloud for 0.png
                    problems[path] = "in iCloud and not on this disk: download it"
                continue
            # Images first: a folder has many of them, and each check of each file can be noticed.
            if entry.name.lower().endswith(EXTENSIONS) and _is_file(entry):
                files.append(path)
            elif is_litter(entry.name):
                continue
            elif is_folder(entry):
                enter(entry.path, path, containing)
            else:
                problems[path] = _why_no_file(entry) or why_not_by_name(entry.name)


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _why_no_file(entry: "os.DirEntry[str]") -> str | None:
    """Why an entry that is no folder cannot be read as a file; None if it can."""
    try:
        if entry.is_file():
            return None
        entry.stat()
    except OSError as error:  # a link to nowhere or to itself
        return _reason(error)
    return "not a file"  # such as a named pipe: opening it would wait for ever


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
