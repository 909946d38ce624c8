"""Pixels of image files: from the cache, or decoded and cached; in memory, or mapped from the cache's file."""

import hashlib
import logging
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL
from jaxtyping import UInt8
from PIL import ImageColor

from cifar_lightning.data import pixelcache
from cifar_lightning.data.decode import UNKNOWN_FORMAT, Colour, file_stamp
from cifar_lightning.data.decode_pool import Write, decode_many, write_nowhere
from cifar_lightning.data.formats import HAS_HEIC, why_not_by_content
from cifar_lightning.data.scan import Problems
from cifar_lightning.files import own_folder
from cifar_lightning.locks import held

log = logging.getLogger(__name__)

CACHE_FOLDER = ".cifar-lightning"
_FORMAT_VERSION = 1
"""Part of a cache's key. To be raised when the project decodes the same files to other pixels."""


How = tuple[int, Colour | None]
"""Height and width of the images, and the colour behind transparent pixels."""


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


def read_pixels(
    root: Path, split: str, files: list[str], how: How, problems: Problems, *, mapped: bool
) -> UInt8[np.ndarray, "n s s 3"]:
    """Pixels of image files, which are cached if nothing is wrong with any of them.

    Args:
        root: Folder of the data, which holds the cache.
        split: Name of the split, for the cache.
        files: Paths below the root.
        how: Height and width, and the colour behind transparent pixels.
        problems: What is known to be wrong already. Damaged files are added.
        mapped: Whether the pixels do not fit into memory. They are decoded into the cache's file then, and mapped.

    Returns:
        The pixels; none where there are problems.

    Raises:
        NotWritten: If the pixels do not fit into memory and cannot be cached.
    """
    image_size, _ = how
    name, folder = f"{split}-{image_size}", root / CACHE_FOLDER
    shape = (len(files), image_size, image_size, 3)

    def cache(stamps: Iterable[str]) -> Path:
        return pixelcache.cache_file(folder, name, _cache_key(files, stamps, how))

    if problems:  # keep the cache: it may fit again once the user has mended the problems
        find_damaged(root, files, how, problems)
        return np.empty((0, *shape[1:]), np.uint8)

    def cached() -> UInt8[np.ndarray, "n s s 3"] | None:
        # Without a cache, the stamps are not needed here: the workers get them at less cost when they open the files.
        if not pixelcache.own_files(folder, name):
            return None
        return pixelcache.load(cache(map(file_stamp, _full_paths(root, files))), shape, mapped=mapped)

    if (found := cached()) is not None:
        return found
    with ExitStack() as stack:
        if stack.enter_context(_one_at_a_time(folder, name)) and (found := cached()) is not None:
            return found
        draft = stack.enter_context(closing(pixelcache.Draft(folder, name, needed=math.prod(shape) if mapped else 0)))
        pixels = None if mapped else np.empty(shape, np.uint8)
        stamps = _decode(root, files, how, problems, pixels, draft.write)
        if problems:
            return np.empty((0, *shape[1:]), np.uint8)
        if pixels is None:
            pixels = draft.mapped(shape)
        draft.keep(cache(stamps), pixels)
        return pixels


@contextmanager
def _one_at_a_time(folder: Path, name: str) -> Iterator[bool]:
    """Decode while no other process decodes the same; gives whether this one has waited for another.

    Where the folder of the cache cannot be written, there is nothing to wait for.
    """
    has_waited = False

    def waits(owner: str) -> None:
        nonlocal has_waited
        has_waited = True
        log.info("waiting   %s is decoding the images into %s", owner, folder)

    with ExitStack() as stack:
        with suppress(OSError):
            own_folder(folder)
            folder.mkdir(exist_ok=True)
            stack.enter_context(held(folder / f".{name}.lock", waits=waits))
        yield has_waited


def find_damaged(root: Path, files: list[str], how: How, problems: Problems) -> None:
    """Decode files for what is wrong with them alone, which is added to ``problems``."""
    _decode(root, files, how, problems, None, write_nowhere)


def _decode(
    root: Path,
    files: list[str],
    how: How,
    problems: Problems,
    pixels: UInt8[np.ndarray, "n s s 3"] | None,
    write: Write,
) -> list[str]:
    """Decode files; gives their stamps. The pixels go into an array, if there is one, and to ``write``."""
    paths, buffer = _full_paths(root, files), None if pixels is None else pixels.reshape(-1).data
    image_size, background = how
    stamps, damaged = decode_many(paths, buffer, image_size=image_size, background=background, write=write)
    for index, reason in damaged.items():
        problems[files[index]] = why_not_by_content(paths[index]) if reason == UNKNOWN_FORMAT else reason
    return stamps


def _full_paths(root: Path, files: list[str]) -> list[str]:
    folder = os.path.join(root, "")  # only once: a join per file takes a third of the time of reading the cache
    return [folder + path for path in files]


def _cache_key(files: list[str], stamps: Iterable[str], how: How) -> str:
    # Another version of Pillow, or of what reads HEIC for it, may decode or resize to other pixels.
    image_size, background = how
    heic = version("pillow_heif") if HAS_HEIC else ""
    parts = [f"{_FORMAT_VERSION} {PIL.__version__}{heic} {image_size}{background or ''}", *files, *stamps]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
