"""Decoded pixels kept on disk: one file per split and size, whose name says which image files it was made of."""

import logging
import os
import zlib
from contextlib import suppress
from pathlib import Path

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


def save(path: Path, pixels: UInt8[np.ndarray, "n s s 3"], *, stale: str) -> None:
    """Write a cache file, whole or with a wrong checksum, in place of those that the pattern ``stale`` finds beside it.

    Where it cannot be written, there is none: data may be read-only.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        for old in path.parent.glob(stale):  # first, as two may be more than the disk holds
            old.unlink(missing_ok=True)
        with open(temporary, "xb") as file:
            file.write(pixels.data)
            file.write(_checksum(pixels))  # instead of waiting for the disk: what a power cut tears is not used
        os.replace(temporary, path)
    except OSError as error:
        log.info("no cache of the decoded images is kept in %s (%s): they are read anew next time", path.parent, error)
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _checksum(pixels: UInt8[np.ndarray, "n s s 3"]) -> bytes:
    return zlib.crc32(pixels.data).to_bytes(_CHECKSUM_BYTES, "little")
