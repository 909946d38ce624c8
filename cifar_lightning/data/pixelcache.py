"""Decoded pixels kept on disk: one file per split and size, whose name says which image files it was made of."""

import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

log = logging.getLogger(__name__)

_CHECKSUM_BYTES = 4


def load(path: Path, shape: tuple[int, ...]) -> UInt8[np.ndarray, "n s s 3"] | None:
    """Pixels of a cache file; None where there is none, or where it is not whole.

    The file is the pixels as they lie in memory, followed by their CRC-32: nothing in it is parsed or run.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != np.prod(shape) + _CHECKSUM_BYTES:
                raise ValueError("its size is wrong")
            pixels = np.fromfile(file, np.uint8, int(np.prod(shape))).reshape(shape)
            if file.read() != _checksum(pixels):
                raise ValueError("its checksum is wrong")
            return pixels
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.info("%s is not used (%s): the images are read anew", path, error)
        return None


class Draft:
    """A cache file in the making: pixels are written as they come, so that at the end there is little left to wait for.

    Where it cannot be written there is none, for data may be read-only. To be closed, and gone then if it was not kept.

    Args:
        folder: Of the cache.
        name: What the names of this file and of those it comes in place of begin with.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}-{os.getpid()}.tmp"
        self._file: BinaryIO | None = None
        self._lock = Lock()
        with self._given_up_on_error():
            folder.mkdir(exist_ok=True)
            # First, as two may be more than the disk holds; drafts that killed processes have left, too.
            for old in folder.glob(f"{name}-*"):
                old.unlink(missing_ok=True)
            self._file = open(self._path, "xb")  # noqa: SIM115 - closed by close()

    def write(self, pixels: memoryview, start: int) -> None:
        """Write a part of the pixels, whose first byte is byte ``start`` of all; from any thread."""
        with self._lock, self._given_up_on_error():
            if self._file is not None:
                self._file.seek(start)
                self._file.write(pixels)

    def keep(self, path: Path, pixels: UInt8[np.ndarray, "n s s 3"]) -> None:
        """Give the file its name, now that all pixels are in it."""
        with self._given_up_on_error():
            if self._file is not None:
                self._file.seek(pixels.nbytes)
                # Instead of waiting for the disk: what a power cut tears is not used.
                self._file.write(_checksum(pixels))
                self._file.close()
                os.replace(self._path, path)

    def close(self) -> None:
        """Remove what was not kept."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
            self._file = None

    @contextmanager
    def _given_up_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            place = self._path.parent
            log.info("no cache of the decoded images is kept in %s (%s): they are read anew next time", place, error)
            self.close()


def _checksum(pixels: UInt8[np.ndarray, "n s s 3"]) -> bytes:
    return zlib.crc32(pixels.data).to_bytes(_CHECKSUM_BYTES, "little")
