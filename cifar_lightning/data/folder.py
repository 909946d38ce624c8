"""Your own images: a folder per split, and in it a folder per class."""

import hashlib
import os
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import PIL
from jaxtyping import UInt8
from torchvision.datasets.folder import IMG_EXTENSIONS

from cifar_lightning.data import pixelcache
from cifar_lightning.data.decode import file_stamp
from cifar_lightning.data.decode_pool import Write, decode_many, write_nowhere

CACHE_FOLDER = ".cifar-lightning"
MAX_IMAGE_SIZE = 1024
NUM_PROBLEMS_SHOWN = 10
_FORMAT_VERSION = 1
"""Part of a cache's key. To be raised when the project decodes the same files to other pixels."""

Problems = dict[str, str]
"""What is wrong with a file or folder, by its path below the root."""


class ImageFolder:
    """Images in folders: ``root/train/<class>/*``, ``root/test/<class>/*`` and optionally ``root/val/<class>/*``.

    It has torchvision's form: ``data`` uint8 (N, S, S, 3), ``targets`` and ``classes``, the sorted names of the folders
    in train/, or of test/ where there is no train/. Images are sorted by class, then by path. The images of val/ follow
    those of train/, and ``num_val`` is their number.

    Files with torchvision's extensions are read, also in nested folders, and turned as their EXIF says. An image that
    is not ``image_size`` x ``image_size`` is cropped to its largest centred square and resized with antialiasing.
    Hidden files are ignored; all other files must be images.

    Decoded pixels are cached in ``root/.cifar-lightning`` if that can be written. The cache is used while the paths,
    sizes and times of the files stay the same.

    Args:
        root: Folder that holds the splits.
        train: Whether to read the images of train/ and val/, or those of test/.
        download: Not used.
        image_size: Height and width of the images, in pixels, in [1, 1024].

    Raises:
        ValueError: If ``root`` is not such a folder, or ``image_size`` is out of its range. If classes have no images
            or are not in train/, or files are damaged or are not images: one message lists them.
        WorkerLost: If a process that decodes images is ended from outside.
    """

    options: ClassVar[dict[str, Any]] = {"image_size": int}

    def __init__(
        self, root: str | Path | None, train: bool = True, download: bool = False, *, image_size: int = 32
    ) -> None:
        if not 1 <= image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size must be in [1, {MAX_IMAGE_SIZE}], got {image_size}")
        split = "train" if train else "test"
        folder = _checked_root(root, split)
        # The test images are read without training images, too: the classes of a checkpoint are then asked for.
        named_by = "train" if (folder / "train").is_dir() else split
        self.classes = _class_names(folder, named_by)
        if not self.classes:
            raise ValueError(_not_a_root(root, f"{named_by}/ has no folder in it"))
        problems: Problems = {}
        by_split = _find_splits(folder, self.classes, problems, train=train)
        files = _flat(by_split)
        self.num_val = sum(map(len, by_split.get("val", ())))
        self.targets: list[int] = [
            target for found in by_split.values() for target, members in enumerate(found) for _ in members
        ]
        self.data = _pixels(folder, split, files, image_size, problems)
        if problems:  # look for those of the other splits too, so that the user can mend all at once
            if (folder / ("test" if train else "train")).is_dir():
                others = _flat(_find_splits(folder, self.classes, problems, train=not train))
                _decode(folder, others, image_size, problems)
            raise ValueError(_message(folder, problems))


def _checked_root(root: str | Path | None, split: str) -> Path:
    if root is None:
        raise ValueError(_not_a_root(root, "none is given"))
    folder = Path(root).expanduser()
    for needed in (folder, folder / split):
        if not needed.is_dir():
            raise ValueError(_not_a_root(root, f"{needed.absolute()} is not a folder"))
    return folder


def _not_a_root(root: str | Path | None, reason: str) -> str:
    return (
        "root must be a folder of images, train/<class>/* and test/<class>/* and optionally val/<class>/*, "
        f"got {root}: {reason}"
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "Thumbs.db"


def _class_names(root: Path, split: str) -> list[str]:
    with os.scandir(root / split) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not _is_hidden(entry.name))


def _find(root: Path, split: str, classes: list[str], problems: Problems) -> list[list[str]]:
    """Paths of a split's images: a sorted list per class. What cannot be used is added to ``problems``."""
    found: dict[str, list[str]] = {name: [] for name in classes}
    with os.scandir(root / split) as entries:
        for entry in entries:
            path = f"{split}/{entry.name}"
            if _is_hidden(entry.name):
                continue
            if not entry.is_dir():
                problems[path] = "not in the folder of a class"
            elif entry.name not in found:
                problems[path] = "not a class of train/"
            else:
                _find_in_class(entry.path, path, found[entry.name], problems)
    if split != "val":
        problems.update({f"{split}/{name}": "a class without images" for name, files in found.items() if not files})
    return [sorted(files) for files in found.values()]


def _find_splits(root: Path, classes: list[str], problems: Problems, *, train: bool) -> dict[str, list[list[str]]]:
    splits = ["test"]
    if train:
        splits = ["train", "val"] if (root / "val").is_dir() else ["train"]
    return {split: _find(root, split, classes, problems) for split in splits}


def _flat(by_split: dict[str, list[list[str]]]) -> list[str]:
    return [file for found in by_split.values() for members in found for file in members]


def _find_in_class(folder: str, below_root: str, files: list[str], problems: Problems) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{below_root}/{entry.name}"
            if _is_hidden(entry.name):
                continue
            try:
                if not entry.is_dir():
                    _add(entry, path, files, problems)
                elif entry.is_symlink() and _leads_to_parent(entry.path, folder):
                    problems[path] = "a link to a folder that contains it"
                else:
                    _find_in_class(entry.path, path, files, problems)
            except OSError as error:  # a link to nowhere or to itself, or a folder that may not be read
                problems[path] = error.strerror or type(error).__name__


def _leads_to_parent(link: str, folder: str) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(link))


def _add(entry: "os.DirEntry[str]", path: str, files: list[str], problems: Problems) -> None:
    if not entry.name.lower().endswith(IMG_EXTENSIONS):
        problems[path] = "not an image, by its extension"
        return
    if entry.is_file():
        files.append(path)
    else:
        entry.stat()  # raises where a link leads nowhere
        problems[path] = "not a file"  # such as a named pipe: opening it would wait for ever


def _pixels(
    root: Path, split: str, files: list[str], image_size: int, problems: Problems
) -> UInt8[np.ndarray, "n s s 3"]:
    """Pixels of the files, from the cache or decoded. They are cached if nothing is wrong with any file."""
    name = f"{split}-{image_size}"
    folder = root / CACHE_FOLDER

    def cache(stamps: Iterable[str]) -> Path:
        return folder / f"{name}-{_cache_key(files, stamps, image_size)}.pixels"

    if problems:  # keep the cache: it may fit again once the user has mended the problems
        return _decode(root, files, image_size, problems)[0]
    # Without a cache, the stamps are not needed here: the workers get them at less cost when they open the files.
    if any(folder.glob(f"{name}-*.pixels")):
        cached = pixelcache.load(cache(map(file_stamp, _full_paths(root, files))), (len(files), *(image_size,) * 2, 3))
        if cached is not None:
            return cached
    with closing(pixelcache.Draft(folder, name)) as draft:
        pixels, stamps = _decode(root, files, image_size, problems, draft.write)
        if not problems:
            draft.keep(cache(stamps), pixels)
    return pixels


def _decode(
    root: Path, files: list[str], image_size: int, problems: Problems, write: Write = write_nowhere
) -> tuple[UInt8[np.ndarray, "n s s 3"], list[str]]:
    """Pixels and stamps of the files. The pixels also go to ``write``. Damaged files are added to ``problems``."""
    pixels = np.empty((len(files), image_size, image_size, 3), np.uint8)
    paths = _full_paths(root, files)
    stamps, damaged = decode_many(paths, pixels.reshape(-1).data, image_size=image_size, write=write)
    problems.update({files[index]: reason for index, reason in damaged.items()})
    return pixels, stamps


def _full_paths(root: Path, files: list[str]) -> list[str]:
    folder = os.path.join(root, "")  # only once: a join per file takes a third of the time of reading the cache
    return [folder + path for path in files]


def _cache_key(files: list[str], stamps: Iterable[str], image_size: int) -> str:
    # Pillow's version is part of it, as another version may decode or resize to other pixels.
    parts = [f"{_FORMAT_VERSION} {PIL.__version__} {image_size}", *files, *stamps]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _message(root: Path, problems: Problems) -> str:
    shown = [f"{path}: {problems[path]}" for path in sorted(problems)[:NUM_PROBLEMS_SHOWN]]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    noun = "path" if len(problems) == 1 else "paths"
    return f"{len(problems)} {noun} in {root} cannot be used, remove or mend them: {'; '.join(shown)}"
