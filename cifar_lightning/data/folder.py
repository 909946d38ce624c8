"""Your own images: a folder per split, and in it a folder per class."""

import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from cifar_lightning.data import layout
from cifar_lightning.data.formats import HELP, NOT_READ
from cifar_lightning.data.mapped import Gigabytes, gigabytes
from cifar_lightning.data.pixelcache import NotWritten
from cifar_lightning.data.pixels import CACHE_FOLDER, colour, find_damaged, read_pixels
from cifar_lightning.data.scan import Problems, find_images
from cifar_lightning.errors import listed, one_line, printable

log = logging.getLogger(__name__)

MAX_IMAGE_SIZE = 1024
NUM_PROBLEMS_SHOWN = 10


class ImageFolder:
    """Images in folders: ``root/train/<class>/*``, ``root/test/<class>/*`` and optionally ``root/val/<class>/*``.

    It has torchvision's form: ``data`` uint8 (N, S, S, 3), ``targets`` and ``classes``, the sorted names of the folders
    in train/ or test/. Images are sorted by class, then by path. The images of val/, which may also be called valid/,
    validation/ or dev/, follow those of train/, and ``num_val`` is their number. ``files`` has the paths of the images
    below the root.

    Files with the extensions of ``formats.EXTENSIONS`` are read, also in nested folders, and turned as their EXIF says.
    An image that is not ``image_size`` x ``image_size`` is cropped to its largest centred square and resized with
    antialiasing. Hidden files, and what systems leave behind (``litter``), are ignored. All other files in a split must
    be images. What else is in the root is not used, which the log says.

    Decoded pixels are cached in ``root/.cifar-lightning`` if that can be written. The cache is used while the paths,
    sizes and times of the files stay the same. Where the pixels do not fit into ``memory``, ``data`` is that file,
    mapped and read-only.

    Args:
        root: Folder that holds the splits.
        train: Whether to read the images of train/ and val/, or those of test/.
        download: Not used.
        image_size: Height and width of the images, in pixels, in [1, 1024].
        background: Colour behind transparent pixels, such as ``white`` or ``#ff8800``; None takes what the file has
            there.
        memory: Gigabytes (of 10^9 bytes) that the pixels may take in memory, those of all splits of a pair; at least 0.
            ``"auto"`` takes a share of what is free.
        pair: Whether the other ones are read too, as training does. The classes are then those of train/, and test/
            must have the same. By itself, test/ names its own classes.

    Raises:
        ValueError: If ``root`` is not such a folder, or another argument is out of its range. If classes
            have no images, or names that UTF-8 cannot hold, or are not in train/, or files are damaged or are not
            images: one message lists them, those of train/ and of test/ for a pair. If the pixels fit neither into
            ``memory`` nor into the folder of the cache.
        WorkerLost: If a process that decodes images is ended from outside.
    """

    options: ClassVar[dict[str, Any]] = {"image_size": int, "background": str | None, "memory": Gigabytes}
    takes_pair: ClassVar[bool] = True

    def __init__(
        self,
        root: str | Path | None,
        train: bool = True,
        download: bool = False,
        *,
        image_size: int = 32,
        background: str | None = None,
        memory: Gigabytes = "auto",
        pair: bool = False,
    ) -> None:
        if not 1 <= image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size must be in [1, {MAX_IMAGE_SIZE}], got {image_size}")
        how = (image_size, colour(background))
        allowed = gigabytes(memory)
        split, other = ("train", "test") if train else ("test", "train")
        folder = _checked_root(root, [split, other] if pair else [split])
        named_by = "train" if pair else split
        self.classes = layout.folders(folder / named_by)
        if not self.classes:
            raise ValueError(_not_a_root(root, layout.why_no_class(folder, named_by)))
        if train:
            _log_what_may_surprise(folder, self.classes)
        problems: Problems = {}
        by_split = _find_splits(folder, self.classes, problems, train=train)
        files = _flat(by_split)
        self.files = files
        self.num_val = sum(map(len, by_split.get("val", ())))
        self.targets: list[int] = [
            target for found in by_split.values() for target, members in enumerate(found) for _ in members
        ]
        others_problems: Problems = {}
        others = _flat(_find_splits(folder, self.classes, others_problems, train=not train)) if pair else []
        needed = (len(files) + len(others)) * 3 * image_size**2 / 1e9
        if needed > allowed and (train or not pair):
            place = printable(str(folder / CACHE_FOLDER))
            log.info("memory    %.3g GB of pixels, data.memory=%.3g: batches are read from %s", needed, allowed, place)
        try:
            self.data = read_pixels(folder, split, files, how, problems, mapped=needed > allowed)
        except NotWritten as error:
            raise ValueError(_does_not_fit(root, needed, allowed, error)) from error
        if problems:
            # With those of the other splits of a pair, so that the user can mend all at once.
            find_damaged(folder, others, how, others_problems)
            raise ValueError(_message(folder, problems | others_problems))


class ClassFolders:
    """Images of one split alone: ``root/<class>/*``; in all else as ``ImageFolder``, whose form it has.

    Args:
        root: Folder that holds a folder per class.
        image_size: Height and width of the images, in pixels, in [1, 1024].
        background: See ``ImageFolder``.
        memory: Likewise.

    Raises:
        ValueError: If ``root`` has no such folders, or they hold what cannot be used.
    """

    def __init__(
        self, root: Path, *, image_size: int, background: str | None = None, memory: Gigabytes = "auto"
    ) -> None:
        self.classes = layout.folders(root)
        if not self.classes:
            raise ValueError(f"{printable(str(root))} must hold a folder of images per class, and has no folder in it")
        problems: Problems = {}
        by_class = find_images(root, ".", self.classes, problems)
        for name, members in zip(self.classes, by_class, strict=True):
            if not members:
                problems.setdefault(name, "a class without images")
        self.files = [file for members in by_class for file in members]
        self.targets = [target for target, members in enumerate(by_class) for _ in members]
        needed, allowed = len(self.files) * 3 * image_size**2 / 1e9, gigabytes(memory)
        how = (image_size, colour(background))
        try:
            self.data = read_pixels(root, "all", self.files, how, problems, mapped=needed > allowed)
        except NotWritten as error:
            raise ValueError(_does_not_fit(root, needed, allowed, error)) from error
        if problems:
            raise ValueError(_message(root, problems))


def _checked_root(root: str | Path | None, splits: Iterable[str]) -> Path:
    if root is None:
        raise ValueError(_not_a_root(root, "none is given"))
    folder = Path(os.path.expanduser(root))
    for needed in (folder, *(folder / split for split in splits)):
        if not os.path.isdir(needed):
            advice = "" if needed == folder else layout.hint(folder, needed.name)
            raise ValueError(_not_a_root(root, f"{printable(str(needed.absolute()))} is not a folder{advice}"))
    return folder


def _not_a_root(root: str | Path | None, reason: str) -> str:
    return f"root must be a folder of images, {layout.EXPECTED}, got {printable(str(root))}: {reason}"


def _log_what_may_surprise(root: Path, classes: list[str]) -> None:
    splits = [name for name in ("train", layout.val_folder(root), "test") if name is not None]
    if names := layout.unused(root, splits):
        read = ", ".join(f"{name}/" for name in splits)
        log.info("unused    %s in %s: images are read from %s", listed(names), printable(str(root)), read)
    if names := layout.look_alikes(classes):
        log.info("classes   %s differ in upper and lower case alone, or in how an accent is stored", listed(names))


def _find_splits(root: Path, classes: list[str], problems: Problems, *, train: bool) -> dict[str, list[list[str]]]:
    """Paths of the images of each split: a sorted list per class. What cannot be used is added to ``problems``."""
    splits = {"train": "train"} if train else {"test": "test"}
    if train and (val := layout.val_folder(root)) is not None:
        splits["val"] = val
    found = {split: find_images(root, folder, classes, problems) for split, folder in splits.items()}
    for split, by_class in found.items():
        folder = splits[split]
        if split == "val" and not any(by_class) and not any(path.startswith(folder) for path in problems):
            problems[folder] = "no images in it"
        elif split != "val" and folder not in problems:
            empty = [name for name, files in zip(classes, by_class, strict=True) if not files]
            for name in empty:
                problems.setdefault(f"{folder}/{name}", "a class without images")
    return found


def _flat(by_split: dict[str, list[list[str]]]) -> list[str]:
    return [file for found in by_split.values() for members in found for file in members]


def _does_not_fit(root: str | Path | None, needed: float, allowed: float, reason: Exception) -> str:
    return (
        f"memory must be at least {_rounded_up(needed)}, the gigabytes that the pixels take, got {allowed:.3g}; "
        f"nor can they be read from {printable(str(root))}/{CACHE_FOLDER} ({printable(one_line(reason))}): set "
        "data.memory, or copy the images to a folder that can be written and name it with data.root="
    )


def _rounded_up(gigabytes: float) -> str:
    return f"{math.ceil(gigabytes * 1000) / 1000:g}"


def _message(root: Path, problems: Problems) -> str:
    reasons = [f"{printable(path)}: {printable(problems[path])}" for path in sorted(problems)[:NUM_PROBLEMS_SHOWN]]
    if len(problems) > len(reasons):
        reasons.append(f"and {len(problems) - len(reasons)} more")
    noun = "path" if len(problems) == 1 else "paths"
    advice = f". {HELP}" if any(NOT_READ in reason for reason in reasons) else ""
    listing = "; ".join(reasons)
    return f"{len(problems)} {noun} in {printable(str(root))} cannot be used, remove or mend them: {listing}{advice}"
