"""Your own images: a folder per split, and in it a folder per class."""

import hashlib
import logging
import os
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL
from jaxtyping import UInt8
from PIL import ImageColor

from cifar_lightning.data import layout, pixelcache
from cifar_lightning.data.decode import UNKNOWN_FORMAT, Colour, file_stamp
from cifar_lightning.data.decode_pool import Write, decode_many, write_nowhere
from cifar_lightning.data.formats import HELP, NOT_READ, why_not_by_content
from cifar_lightning.data.scan import Problems, find_images
from cifar_lightning.errors import listed, printable

log = logging.getLogger(__name__)

CACHE_FOLDER = ".cifar-lightning"
MAX_IMAGE_SIZE = 1024
NUM_PROBLEMS_SHOWN = 10
How = tuple[int, Colour | None]
"""Height and width of the images, and the colour behind transparent pixels."""

_FORMAT_VERSION = 1
"""Part of a cache's key. To be raised when the project decodes the same files to other pixels."""


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
    sizes and times of the files stay the same.

    Args:
        root: Folder that holds the splits.
        train: Whether to read the images of train/ and val/, or those of test/.
        download: Not used.
        image_size: Height and width of the images, in pixels, in [1, 1024].
        background: Colour behind transparent pixels, such as ``white`` or ``#ff8800``; None takes what the file has
            there.
        pair: Whether the other ones are read too, as training does. The classes are then those of train/, and test/
            must have the same. By itself, test/ names its own classes.

    Raises:
        ValueError: If ``root`` is no such folder, or another argument is out of its range. If classes have no images,
            or names that UTF-8 cannot hold, or are not in train/, or files are damaged or are not images: one message
            lists them, those of train/ and of test/ for a pair.
        WorkerLost: If a process that decodes images is ended from outside.
    """

    options: ClassVar[dict[str, Any]] = {"image_size": int, "background": str | None}
    takes_pair: ClassVar[bool] = True

    def __init__(
        self,
        root: str | Path | None,
        train: bool = True,
        download: bool = False,
        *,
        image_size: int = 32,
        background: str | None = None,
        pair: bool = False,
    ) -> None:
        if not 1 <= image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size must be in [1, {MAX_IMAGE_SIZE}], got {image_size}")
        how = (image_size, colour(background))
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
        self.data = _pixels(folder, split, files, how, problems)
        if problems:
            if pair:  # look for those of the other splits too, so that the user can mend all at once
                others = _flat(_find_splits(folder, self.classes, problems, train=not train))
                _decode(folder, others, how, problems)
            raise ValueError(_message(folder, problems))


def colour(name: str | None) -> Colour | None:
    """Red, green and blue of a colour by its name, as in CSS, or in hexadecimal.

    Raises:
        ValueError: If there is no such colour.
    """
    if name is None:
        return None
    try:
        red, green, blue, *opacity = ImageColor.getrgb(name)
        if opacity:
            raise ValueError("it has an opacity")
    except ValueError as error:
        raise ValueError(
            f"background must be a colour such as white, black or #ff8800, or null, got {name!r}"
        ) from error
    return red, green, blue


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


def _pixels(root: Path, split: str, files: list[str], how: How, problems: Problems) -> UInt8[np.ndarray, "n s s 3"]:
    """Pixels of the files, from the cache or decoded. They are cached if nothing is wrong with any file."""
    image_size, _ = how
    name = f"{split}-{image_size}"
    folder = root / CACHE_FOLDER

    def cache(stamps: Iterable[str]) -> Path:
        return pixelcache.cache_file(folder, name, _cache_key(files, stamps, how))

    if problems:  # keep the cache: it may fit again once the user has mended the problems
        return _decode(root, files, how, problems)[0]
    # Without a cache, the stamps are not needed here: the workers get them at less cost when they open the files.
    if pixelcache.own_files(folder, name):
        cached = pixelcache.load(cache(map(file_stamp, _full_paths(root, files))), (len(files), *(image_size,) * 2, 3))
        if cached is not None:
            return cached
    with closing(pixelcache.Draft(folder, name)) as draft:
        pixels, stamps = _decode(root, files, how, problems, draft.write)
        if not problems:
            draft.keep(cache(stamps), pixels)
    return pixels


def _decode(
    root: Path, files: list[str], how: How, problems: Problems, write: Write = write_nowhere
) -> tuple[UInt8[np.ndarray, "n s s 3"], list[str]]:
    """Pixels and stamps of the files. The pixels also go to ``write``. Damaged files are added to ``problems``."""
    image_size, background = how
    pixels = np.empty((len(files), image_size, image_size, 3), np.uint8)
    paths = _full_paths(root, files)
    stamps, damaged = decode_many(
        paths, pixels.reshape(-1).data, image_size=image_size, background=background, write=write
    )
    for index, reason in damaged.items():
        problems[files[index]] = why_not_by_content(paths[index]) if reason == UNKNOWN_FORMAT else reason
    return pixels, stamps


def _full_paths(root: Path, files: list[str]) -> list[str]:
    folder = os.path.join(root, "")  # only once: a join per file takes a third of the time of reading the cache
    return [folder + path for path in files]


def _cache_key(files: list[str], stamps: Iterable[str], how: How) -> str:
    # Pillow's version is part of it, as another version may decode or resize to other pixels.
    image_size, background = how
    parts = [f"{_FORMAT_VERSION} {PIL.__version__} {image_size}{background or ''}", *files, *stamps]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _message(root: Path, problems: Problems) -> str:
    reasons = [f"{printable(path)}: {printable(problems[path])}" for path in sorted(problems)[:NUM_PROBLEMS_SHOWN]]
    if len(problems) > len(reasons):
        reasons.append(f"and {len(problems) - len(reasons)} more")
    noun = "path" if len(problems) == 1 else "paths"
    advice = f". {HELP}" if any(NOT_READ in reason for reason in reasons) else ""
    listing = "; ".join(reasons)
    return f"{len(problems)} {noun} in {printable(str(root))} cannot be used, remove or mend them: {listing}{advice}"
