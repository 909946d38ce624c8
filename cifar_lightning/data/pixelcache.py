"""Decoded pixels on disk: one file per split and image size. A key in its name stands for the image files."""

import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

from cifar_lightning.data.mapped import release
from cifar_lightning.files import own_folder, regular

log = logging.getLogger(__name__)

_CHECKSUM_BYTES = 4
_BYTES_PER_PART = 2**26


def cache_file(folder: Path, name: str, key: str) -> Path:
    """Path of a cache file: ``name`` has the split and the image size, ``key`` is 32 hexadecimal digits."""
    return folder / f"{name}-{key}.pixels"


def own_files(folder: Path, name: str) -> list[Path]:
    """The cache files and drafts with this name, of any key and process. All other files are a user's."""
    pattern = re.compile(rf"{re.escape(name)}-([0-9a-f]{{32}}\.pixels|[0-9]+\.tmp)")
    with suppress(OSError), os.scandir(folder) as entries:
        return [
            Path(entry.path)
            for entry in entries
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
        ]
    return []


class NotWritten(Exception):
    """Pixels that are needed in a file cannot be written there."""


def load(path: Path, shape: tuple[int, ...], *, mapped: bool = False) -> UInt8[np.ndarray, "n s s 3"] | None:
    """Pixels of a cache file; None if there is no file or it is damaged.

    The file holds the pixels as they are in memory, then their CRC-32. Nothing in it is parsed or run.

    Args:
        path: See ``cache_file``.
        shape: Of the pixels, (N, S, S, 3).
        mapped: Whether to map the file, read-only, in place of reading it into memory.
    """
    try:
        regular(path)  # a pipe would be waited for
        with open(path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != np.prod(shape) + _CHECKSUM_BYTES:
                raise ValueError("its size is wrong")
            pixels = _map(file, shape) if mapped else np.fromfile(file, np.uint8, int(np.prod(shape))).reshape(shape)
            file.seek(pixels.nbytes)
            if file.read() != _checksum(pixels):
                raise ValueError("its checksum is wrong")
            return pixels
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.info("%s is not used (%s): the images are decoded again", path, error)
        return None


class Draft:
    """A cache file that is being written.

    Pixels are written as they are decoded, so that little is left to write at the end. Where the file cannot be
    written, as with read-only data, nothing is cached and the log says so. ``close`` removes the file unless ``keep``
    was called.

    Args:
        folder: Folder of the cache.
        name: The split and the image size, see ``cache_file``. Older cache files and drafts of this name are removed.
        needed: Bytes of the pixels where they are needed in the file, as they do not fit into memory; else 0.

    Raises:
        NotWritten: If the pixels are needed in the file and it cannot be written; ``write`` and ``keep`` raise it, too.
    """

    def __init__(self, folder: Path, name: str, *, needed: int = 0) -> None:
        self._path = folder / f"{name}-{os.getpid()}.tmp"
        self._needed = needed
        self._file: BinaryIO | None = None
        self._lock = Lock()
        with self._giving_up_on_error():
            own_folder(folder)
            folder.mkdir(exist_ok=True)
            # Before writing, as the disk may not hold two. This also removes the drafts of killed processes.
            for old in own_files(folder, name):
                old.unlink(missing_ok=True)
            if (free := shutil.disk_usage(folder).free) < needed:
                raise OSError(f"the disk has {free / 1e9:.2f} GB left")
            self._file = open(self._path, "x+b")  # noqa: SIM115 - close() closes it

    def write(self, pixels: memoryview, start: int) -> None:
        """Write a part of the pixels, whose first byte is byte ``start`` of all pixels. Any thread may call it."""
        with self._lock, self._giving_up_on_error():
            if self._file is not None:
                self._file.seek(start)
                self._file.write(pixels)

    def mapped(self, shape: tuple[int, ...]) -> UInt8[np.ndarray, "n s s 3"]:
        """The needed pixels, of shape (N, S, S, 3), once all are written; read-only, mapped from the file."""
        assert self._needed
        assert self._file is not None
        with self._giving_up_on_error():
            self._file.flush()
            return _map(self._file, shape)

    def keep(self, path: Path, pixels: UInt8[np.ndarray, "n s s 3"]) -> None:
        """Complete the file, into which all pixels are written, and give it its name."""
        with self._giving_up_on_error():
            if self._file is not None:
                self._file.seek(pixels.nbytes)
                # The checksum replaces waiting for the disk: a file that a power cut has damaged is not used.
                self._file.write(_checksum(pixels))
                self._file.close()
                os.replace(self._path, path)

    def close(self) -> None:
        """Remove the file unless it was kept."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._file = None

    @contextmanager
    def _giving_up_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.close()
            place = self._path.parent
            if self._needed:
                raise NotWritten(str(error)) from error
            log.info("the decoded images are not cached in %s (%s): the next run decodes them again", place, error)


def _map(file: BinaryIO, shape: tuple[int, ...]) -> UInt8[np.ndarray, "n s s 3"]:
    return np.memmap(file, np.uint8, "r", shape=shape)


def _checksum(pixels: UInt8[np.ndarray, "n s s 3"]) -> bytes:
    checksum, all_bytes = 0, pixels.reshape(-1)
    for start in range(0, len(all_bytes), _BYTES_PER_PART):
        checksum = zlib.crc32(all_bytes[start : start + _BYTES_PER_PART].data, checksum)
        release(pixels)
    return checksum.to_bytes(_CHECKSUM_BYTES, "little")
