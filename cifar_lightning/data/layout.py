"""How a folder of images is laid out: its splits, and what to tell a user whose folder is laid out otherwise."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from cifar_lightning.data.formats import EXTENSIONS
from cifar_lightning.data.litter import is_hidden, is_litter
from cifar_lightning.errors import listed, printable

VAL_NAMES = ("val", "valid", "validation", "dev")
"""Names of the folder of validation images. A data set has one of them, or none."""

EXPECTED = "train/<class>/* and test/<class>/* and optionally val/<class>/*"

_NUM_SHOWN = 10
_NUM_LOOKED_AT = 100
"""Entries of a folder that are looked at for a hint."""


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder or leads to one; not if that cannot be found out, as with a link to itself."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def folders(folder: Path) -> list[str]:
    """Sorted names of the folders in a folder, without those that are litter; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not is_litter(entry.name) and is_folder(entry))
    except OSError:
        return []


def val_folder(root: Path) -> str | None:
    """Name of the folder of validation images; None if there is none.

    Raises:
        ValueError: If there are several, or its name has upper-case letters.
    """
    found = [name for name in folders(root) if name.lower() in VAL_NAMES]
    if len(found) > 1:
        names = listed([f"{name}/" for name in found])
        advice = "put their images together, or move the others away"
        raise ValueError(
            f"root must have one folder of validation images, {printable(str(root))} has {names}: {advice}"
        )
    for name in VAL_NAMES:
        if (root / name).is_dir():  # also where the system takes Val for val
            return name
    if found:
        raise ValueError(
            f"root must have its validation images in val/, {printable(str(root))} has {printable(found[0])}/: "
            "rename it"
        )
    return None


def unused(root: Path, used: Sequence[str]) -> list[str]:
    """Sorted names in a root that are neither litter nor one of the used folders; folders end with a slash."""
    with suppress(OSError), os.scandir(root) as entries:  # a root that cannot be listed may still be read
        visible = {entry.name: is_folder(entry) for entry in entries if not is_litter(entry.name)}
        # Where the system takes Train for train, only Train is listed.
        taken = {*used, *(name for name in visible if name.lower() in used and name.lower() not in visible)}
        return sorted(name + "/" * visible[name] for name in visible.keys() - taken)
    return []


def look_alikes(classes: Iterable[str]) -> list[str]:
    """Names of classes that a person hardly tells apart: they differ in case or in the form of accents alone."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        groups[_folded(name)].append(name)
    return [name for group in groups.values() if len(group) > 1 for name in group]


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def nearest_class(name: str, classes: Iterable[str]) -> str:
    """A hint at the class that a folder is meant for, if a person hardly tells their names apart."""
    meant = next((other for other in classes if _folded(other) == _folded(name)), None)
    if meant is None:
        return ""
    is_same_text = unicodedata.normalize("NFC", meant) == unicodedata.normalize("NFC", name)
    how = ", with its accents stored in another form" if is_same_text else ""
    return f", but {printable(meant)} is{how}: rename it"


def hint(root: Path, split: str) -> str:
    """What a root looks like that has no folder of a split, and what to do about it; empty if it looks like nothing."""
    inside = folders(root)
    for name in inside:
        if name.lower().startswith(split):
            return f"; is it {printable(name)}/? rename it to {split}"
    if len(inside) == 1 and _is_root(root / inside[0]):
        return f"; did you mean {printable(str(root / inside[0]))}?"
    with_images = [name for name in islice(inside, _NUM_SHOWN) if _has_images(root / name)]
    if with_images and _is_root(root.absolute().parent):
        return f"; did you mean {printable(str(root.absolute().parent))}?"
    if with_images:
        return f"; {listed(with_images)} have images, but in no split: make train/ and test/, with a folder per class"
    if _has_images(root):
        return "; its images are in no folder: make train/ and test/, with a folder per class"
    return ""


def why_no_class(root: Path, split: str) -> str:
    """Why a split has no classes: it cannot be read, or has images without folders, or has nothing."""
    try:
        os.listdir(root / split)
    except OSError as error:
        return f"{split}/ cannot be read: {error.strerror}"
    if _has_images(root / split):
        return f"{split}/ has no folder in it, but images: put them into a folder per class, {split}/<class>/"
    return f"{split}/ has no folder in it"


def _is_root(folder: Path) -> bool:
    return {"train", "test"} <= set(folders(folder))


def _has_images(folder: Path) -> bool:
    return any(name.lower().endswith(EXTENSIONS) for name in _some_names(folder))


def _some_names(folder: Path) -> list[str]:
    """Names of the first visible entries of a folder; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in islice(entries, _NUM_LOOKED_AT) if not is_hidden(entry.name)]
    except OSError:
        return []
