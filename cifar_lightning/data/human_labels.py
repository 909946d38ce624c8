"""What people call the images of CIFAR-10: CIFAR-10H for the test images, CIFAR-10N for the training images."""

import _codecs
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from cifar_lightning.data.npy import checked_labels, open_array
from cifar_lightning.errors import UserError, listed, one_line, printable
from cifar_lightning.files import check_torch_archive

COUNTS, PROBS = "cifar10h-counts.npy", "cifar10h-probs.npy"
HUMAN = "CIFAR-10_human.pt"

NOISY = {
    "aggre_label": "the majority of three people's labels",
    "worse_label": "a wrong one of three people's labels, or a right one where none is wrong,",
    "random_label1": "the first of three people's labels",
    "random_label2": "the second of three people's labels",
    "random_label3": "the third of three people's labels",
}
"""The labels of CIFAR-10N that are people's, and what they are."""

_MAX_PICKLE_BYTES = 20_000_000
"""The file of 50,000 images has 2.4 MB."""


def read_shares(root: Path, *, num_images: int, num_classes: int) -> Float64[Tensor, "n k"]:
    """CIFAR-10H: the share of people who gave each label to each test image; rows sum to 1.

    The counts are read, or the shares where there are no counts; they are the same.

    Raises:
        ValueError: If the file cannot be used.

    Source: Peterson et al. 2019 (arXiv:1908.07086).
    """
    path = root / COUNTS if (root / COUNTS).exists() else root / PROBS
    array, shown = open_array(path), printable(str(path))
    if array.shape != (num_images, num_classes):
        raise ValueError(f"{shown} must have the shape ({num_images}, {num_classes}), got {array.shape}")
    numbers = array.astype(np.float64)
    totals = numbers.sum(1, keepdims=True)
    if not (np.isfinite(numbers).all() and (numbers >= 0).all() and (totals > 0).all()):
        raise ValueError(f"{shown} must hold numbers of at least 0, and above 0 for some class of each image")
    if path.name == PROBS and not np.allclose(totals, 1, atol=1e-3):
        raise ValueError(f"{shown} must hold shares that sum to 1, got sums of {totals.min():g} to {totals.max():g}")
    return torch.from_numpy(numbers / totals)


def read_noisy_labels(path: Path, targets: Int64[Tensor, " n"], *, num_classes: int) -> dict[str, Int64[Tensor, " n"]]:
    """CIFAR-10N: people's labels of the training images, by the names in ``NOISY``.

    Args:
        path: The file, a dictionary of NumPy arrays that ``torch.save`` wrote. It is read without running code.
        targets: The labels of all training images, in the numbers of the file.
        num_classes: Number of classes.

    Raises:
        ValueError: If the file cannot be used, or its clean labels are not ``targets``.
        UserError: If the file is not whole, or is no file of torch.save's.

    Source: Wei et al. 2022 (arXiv:2110.12088).
    """
    shown, found = printable(str(path)), _load(path)
    names = ["clean_label", *NOISY]
    arrays = {name: found[name] for name in names if type(found.get(name)) is np.ndarray}
    if missing := [name for name in names if name not in arrays]:
        raise ValueError(f"{shown} must hold arrays of the names {', '.join(names)}; {listed(missing)} are missing")
    size = {"num_images": len(targets), "num_classes": num_classes}
    labels = {name: checked_labels(array, f"{path}: {name}", **size) for name, array in arrays.items()}
    if (num_other := int((labels.pop("clean_label") != targets).sum())) > 0:
        raise ValueError(
            f"{shown}: {num_other:,} of its {len(targets):,} clean labels are not those of the training images, "
            "so that it is for other images, or in another order"
        )
    return labels


def _load(path: Path) -> dict[str, Any]:
    """A dictionary that torch.save wrote. Of NumPy, only what makes an array of whole numbers again may be called."""
    shown = printable(str(path))
    try:
        if not path.is_file():
            raise ValueError("no regular file")
        check_torch_archive(path, kind=f"{HUMAN} of CIFAR-10N", max_pickle_bytes=_MAX_PICKLE_BYTES)
        rebuild = np.empty(0).__reduce__()[0]
        modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # before NumPy 2, and since
        allowed: list[Any] = [
            *((rebuild, f"{module}._reconstruct") for module in modules),
            np.ndarray,
            np.dtype,
            _codecs.encode,
        ]
        allowed += [type(np.dtype(name)) for name in ("int64", "int32", "uint8")]
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(allowed):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{shown} is truncated or damaged: {one_line(error)}") from error
    except Exception as error:  # a pickle made by hand raises anything
        reason = one_line(error) if isinstance(error, ValueError) else "it holds more than names and arrays of numbers"
        raise ValueError(f"{shown} was not loaded: {printable(reason)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{shown} must hold a dictionary of arrays, got a {type(found).__name__}")
    return found
