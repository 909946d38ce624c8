"""One's own images: a folder per split, in it a folder per class."""

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
from cifar_lightning.data.decode_pool import Write, decode_all, nowhere

CACHE_FOLDER = ".cifar-lightning"
MAX_IMAGE_SIZE = 1024
NUM_PROBLEMS_SHOWN = 10
_FORMAT_VERSION = 1
"""Of the pixels in a cache: raised when files of the same bytes come to give others."""

Problems = dict[str, str]
"""From a path below the root to what is wrong with it."""


class ImageFolder:
    """Images in folders: ``root/train/<class>/*``, ``root/test/<class>/*`` and, if wished, ``root/val/<class>/*``.

    In the form of torchvision's data sets: ``data`` uint8 (N, S, S, 3), ``targets`` and ``classes``, the sorted names
    of the folders in train/. Images come by class, then by path. Those of val/ follow those of train/, and ``num_val``
    says how many they are.

    Files of torchvision's extensions are read, in nested folders too, each turned as its EXIF says. An image that is
    not ``image_size`` squared is resized once, with antialiasing, so that its shorter side fits, and cropped to its
    centre. Hidden files are passed over; all other files must be images.

    Decoded pixels are kept in ``root/.cifar-lightning``, where that can be written, and used for as long as paths,
    sizes and times of the files stay the same.

    Args:
        root: Folder that holds the splits.
        train: The images of train/ and val/, or those of test/.
        download: Not used: these images are nobody's to fetch.
        image_size: Height and width of the images, in pixels, in [1, 1024].

    Raises:
        ValueError: If ``root`` is not such a folder, ``image_size`` is out of its range, a class has no images or is
            not one of train/, or a file is not an image or damaged: all of them in one message.
    """

    options: ClassVar[dict[str, Any]] = {"image_size": int}

    def __init__(
        self, root: str | Path | None, train: bool = True, download: bool = False, *, image_size: int = 32
    ) -> None:
        if not 1 <= image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size must be in [1, {MAX_IMAGE_SIZE}], got {image_size}")
        folder = _checked(root)
        self.classes = _class_names(folder, "train")
        if not self.classes:
            raise ValueError(_not_a_root(root, "train/ has no folder in it"))
        problems: Problems = {}
        by_split = _find_all(folder, self.classes, problems, train=train)
        files = _flat(by_split)
        self.num_val = sum(map(len, by_split.get("val", ())))
        self.targets: list[int] = [
            target for found in by_split.values() for target, members in enumerate(found) for _ in members
        ]
        self.data = _pixels(folder, "train" if train else "test", files, image_size, problems)
        if problems:  # then those of the other splits too, to be mended in one go
            others = _flat(_find_all(folder, self.classes, problems, train=not train))
            _decode(folder, others, image_size, problems)
            raise ValueError(_told(folder, problems))


def _checked(root: str | Path | None) -> Path:
    if root is None:
        raise ValueError(_not_a_root(root, "none is given"))
    folder = Path(root).expanduser()
    for needed in (folder, folder / "train", folder / "test"):
        if not needed.is_dir():
            raise ValueError(_not_a_root(root, f"{needed.absolute()} is not a folder"))
    return folder


def _not_a_root(root: str | Path | None, reason: str) -> str:
    return (
        "root must be a folder of images, train/<class>/* and test/<class>/* with val/<class>/* if wished, "
        f"got {root}: {reason}"
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "Thumbs.db"


def _class_names(root: Path, split: str) -> list[str]:
    with os.scandir(root / split) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not _is_hidden(entry.name))


def _find(root: Path, split: str, classes: list[str], problems: Problems) -> list[list[str]]:
    """Paths of a split's images, a sorted list per class; what cannot be used goes into ``problems``."""
    found: dict[str, list[str]] = {name: [] for name in classes}
    with os.scandir(root / split) as entries:
        for entry in entries:
            path = f"{split}/{entry.name}"
            if _is_hidden(entry.name):
                continue
            if not entry.is_dir():
                problems[path] = "not in the folder of a class"
            elif entry.name not in found:
                problems[path] = "no class of train/"
            else:
                _walk(entry.path, path, found[entry.name], problems)
    if split != "val":
        problems.update({f"{split}/{name}": "a class without images" for name, files in found.items() if not files})
    return [sorted(files) for files in found.values()]


def _find_all(root: Path, classes: list[str], problems: Problems, *, train: bool) -> dict[str, list[list[str]]]:
    splits = ("train", "val") if train else ("test",)
    there = [split for split in splits if split != "val" or (root / split).is_dir()]
    return {split: _find(root, split, classes, problems) for split in there}


def _flat(by_split: dict[str, list[list[str]]]) -> list[str]:
    return [file for found in by_split.values() for members in found for file in members]


def _walk(folder: str, shown: str, files: list[str], problems: Problems) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            path = f"{shown}/{entry.name}"
            if _is_hidden(entry.name):
                continue
            try:
                if not entry.is_dir():
                    _add(entry, path, files, problems)
                elif entry.is_symlink() and _is_around(entry.path, folder):
                    problems[path] = "a link to a folder around it"
                else:
                    _walk(entry.path, path, files, problems)
            except OSError as error:  # a link to nowhere or to itself, a folder that may not be read
                problems[path] = error.strerror or type(error).__name__


def _is_around(link: str, folder: str) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(link))


def _add(entry: "os.DirEntry[str]", path: str, files: list[str], problems: Problems) -> None:
    if not entry.name.lower().endswith(IMG_EXTENSIONS):
        problems[path] = "not an image by its name"
        return
    if entry.is_file():
        files.append(path)
    else:
        entry.stat()  # says where a link leads nowhere
        problems[path] = "not a file"  # such as a pipe: opening it would wait for ever


def _pixels(
    root: Path, split: str, files: list[str], image_size: int, problems: Problems
) -> UInt8[np.ndarray, "n s s 3"]:
    """Pixels of the files, from the cache or decoded; kept in the cache where nothing is wrong with any file."""
    name = f"{split}-{image_size}"
    caches = root / CACHE_FOLDER

    def cache(stamps: Iterable[str]) -> Path:
        return caches / f"{name}-{_key(files, stamps, image_size)}.pixels"

    if problems:  # found without opening a file: what is kept may be as good as before once they are mended
        return _decode(root, files, image_size, problems)[0]
    # A first use asks for no stamps here: the processes that open the files have them for less, and side by side.
    if any(caches.glob(f"{name}-*.pixels")):
        kept = pixelcache.load(cache(map(file_stamp, _below(root, files))), (len(files), image_size, image_size, 3))
        if kept is not None:
            return kept
    with closing(pixelcache.Draft(caches, name)) as draft:
        pixels, stamps = _decode(root, files, image_size, problems, draft.write)
        if not problems:
            draft.keep(cache(stamps), pixels)
    return pixels


def _decode(
    root: Path, files: list[str], image_size: int, problems: Problems, write: Write = nowhere
) -> tuple[UInt8[np.ndarray, "n s s 3"], list[str]]:
    """Pixels, which go to ``write`` as well, and stamps of the files; damaged ones go into ``problems``."""
    pixels = np.empty((len(files), image_size, image_size, 3), np.uint8)
    paths = _below(root, files)
    stamps, damaged = decode_all(paths, pixels.reshape(-1).data, image_size=image_size, write=write)
    problems.update({files[index]: reason for index, reason in damaged.items()})
    return pixels, stamps


def _below(root: Path, files: list[str]) -> list[str]:
    folder = os.path.join(root, "")  # once: for each file it takes as long as a third of the reading
    return [folder + path for path in files]


def _key(files: list[str], stamps: Iterable[str], image_size: int) -> str:
    # With Pillow's version, as its decoders and its resizing may come to give other pixels.
    made_of = [f"{_FORMAT_VERSION} {PIL.__version__} {image_size}", *files, *stamps]
    return hashlib.sha256("\0".join(made_of).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _told(root: Path, problems: Problems) -> str:
    shown = [f"{path}: {problems[path]}" for path in sorted(problems)[:NUM_PROBLEMS_SHOWN]]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    noun = "path" if len(problems) == 1 else "paths"
    return f"{len(problems)} {noun} in {root} cannot be used, remove or mend them: {'; '.join(shown)}"
