"""NumPy's .npy files of others: mapped, checked, and never unpickled."""

import stat
import tokenize
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from cifar_lightning.errors import one_line, printable


def open_array(path: Path) -> np.ndarray:
    """The array in a .npy file, mapped and read-only, so that it takes no memory until it is read.

    Raises:
        ValueError: If there is no such file, or it is no whole .npy file of plain numbers.
    """
    shown = printable(str(path))
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would have us wait for ever
            raise ValueError("no regular file")
        with path.open("rb") as file:
            if file.read(6) != b"\x93NUMPY":
                raise ValueError("no .npy file of NumPy's")
        with warnings.catch_warnings(action="ignore"):  # of headers that Python 2 wrote
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise ValueError(f"{shown} cannot be read: {error.strerror or one_line(error)}") from error
    except (ValueError, TypeError, EOFError, OverflowError, tokenize.TokenError) as error:
        raise ValueError(f"{shown} cannot be read: {printable(one_line(error))}") from error
    except (SyntaxError, RecursionError, MemoryError) as error:  # of a header made by hand
        raise ValueError(f"{shown} cannot be read: its header is damaged") from error
    if array.dtype.hasobject or array.dtype.names or array.dtype.kind not in "biuf":
        raise ValueError(f"{shown} must hold numbers, got {printable(str(array.dtype))[:80]}")
    return array


def open_images(path: Path) -> UInt8[np.ndarray, "n h w c"]:
    """The images in a .npy file, mapped.

    Raises:
        ValueError: If it does not hold uint8 images, at least one.
    """
    array = open_array(path)
    if array.dtype != np.uint8 or array.ndim != 4 or 0 in array.shape:
        raise ValueError(
            f"{printable(str(path))} must hold uint8 images of (N, H, W, C), got {array.dtype} of {array.shape}"
        )
    return array


def read_labels(path: Path, *, num_images: int, num_classes: int) -> Int64[Tensor, " n"]:
    """The labels in a .npy file.

    Raises:
        ValueError: If it does not hold so many whole numbers in [0, ``num_classes``).
    """
    return checked_labels(open_array(path), str(path), num_images=num_images, num_classes=num_classes)


def checked_labels(labels: np.ndarray, name: str, *, num_images: int, num_classes: int) -> Int64[Tensor, " n"]:
    """Labels from an array, after the checks of ``read_labels``; ``name`` is what messages call it."""
    must = f"{printable(name)} must hold {num_images:,} whole numbers in [0, {num_classes})"
    if labels.dtype.kind not in "iu" or labels.shape != (num_images,):
        raise ValueError(f"{must}, got {printable(str(labels.dtype))[:80]} of {labels.shape}")
    low, high = labels.min(), labels.max()
    if low < 0 or high >= num_classes:
        raise ValueError(f"{must}, got {low} to {high}")
    return torch.from_numpy(labels.astype(np.int64))
