"""What the project relies on in a data set of torchvision's form, checked once, where the data set comes in."""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from cifar_lightning.errors import listed, one_line
from cifar_lightning.typehints import fits

MAX_CLASSES, MAX_NAME_BYTES = 10_000, 1_000_000
"""Most classes, whose confusion matrix takes 0.8 GB; and most bytes of all their names, which a checkpoint holds."""


def checked(dataset: Any) -> tuple[Tensor, Int64[Tensor, " n"], tuple[str, ...]]:
    """Images, targets and class names of a data set, after checks of all that the project relies on.

    Args:
        dataset: Has ``data``, uint8, (N, H, W, C) or (N, H, W); ``targets``, N whole numbers; and ``classes``, texts.

    Returns:
        The images as they are, with no copy if possible; the targets as int64; the names.

    Raises:
        ValueError: If an attribute is missing, or has another type, shape, length or range.
    """
    for name, other in (("data", "images"), ("targets", "labels"), ("classes", "class_names")):
        if not hasattr(dataset, name):
            hint = f", it has {other}: set self.{name} = self.{other}" if hasattr(dataset, other) else ""
            raise _refused(dataset, f"must have the attribute {name}{hint}")
    classes = _names(dataset)
    images = _images(dataset)
    targets = _targets(dataset, len(images), len(classes))
    return images, targets, classes


def checked_num_val(dataset: Any, num_images: int) -> int:
    """How many of its training images a data set brings for validation, by its attribute ``num_val``; 0 without one.

    Raises:
        ValueError: If that is not a whole number from 0 to below the number of images.
    """
    num_val = getattr(dataset, "num_val", 0)
    if type(num_val) is not int or not 0 <= num_val < num_images:
        raise _refused(dataset, f"must have a whole number in [0, {num_images}) in num_val, got {num_val!r:.40}")
    return num_val


def files_of(dataset: Any, num_images: int) -> list[str] | None:
    """The paths of a data set's images, by its attribute ``files``; None where that is not a text for each image."""
    files = getattr(dataset, "files", ())
    return list(files) if fits(files, list[str]) and len(files) == num_images else None


def _refused(dataset: Any, fault: str) -> ValueError:
    return ValueError(f"dataset {fault} ({type(dataset).__name__})")


def _images(dataset: Any) -> Tensor:
    try:
        images = dataset.data if isinstance(dataset.data, Tensor) else np.asarray(dataset.data)
    except (ValueError, TypeError) as error:  # such as images of several sizes
        raise _refused(dataset, f"must have images of one shape in data: {one_line(error)}") from error
    if str(images.dtype).removeprefix("torch.") != "uint8":
        advice = "convert them to uint8 in [0, 255], as (255 * data).astype('uint8') does with numbers in [0, 1]"
        raise _refused(dataset, f"must have uint8 images in data, got {_kind(images)}; {advice}")
    shape = tuple(images.shape)
    if len(shape) not in (3, 4) or 0 in shape:
        raise _refused(dataset, f"must have at least one image of (N, H, W, C) or (N, H, W) in data, got {shape}")
    if len(shape) == 4 and shape[1] <= 4 < shape[3]:
        advice = "transpose them with data.transpose(0, 2, 3, 1)"
        raise _refused(dataset, f"must have images of (N, H, W, C) in data, got (N, C, H, W) = {shape}; {advice}")
    if isinstance(images, Tensor):
        return images.detach().cpu()
    if min(images.strides) < 0:  # which torch does not have
        images = np.ascontiguousarray(images)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*NumPy array is not writable")  # nor does the project write to it
        return torch.from_numpy(images)


def _kind(values: Any) -> str:
    """The type of an array's values, and the range of numbers."""
    name = str(values.dtype).removeprefix("torch.")
    is_number = values.dtype.is_floating_point if isinstance(values, Tensor) else values.dtype.kind in "iuf"
    return f"{name} in [{values.min():g}, {values.max():g}]" if is_number and 0 not in values.shape else name


def _targets(dataset: Any, num_images: int, num_classes: int) -> Int64[Tensor, " n"]:
    must = f"must have whole numbers in [0, {num_classes}) in targets, one per image"
    try:
        targets = np.asarray(dataset.targets)
    except (ValueError, TypeError, RuntimeError) as error:
        raise _refused(dataset, f"{must}: {one_line(error)}") from error
    if targets.ndim != 1:
        hint = "; one-hot targets become numbers with argmax(1)" if targets.ndim == 2 else ""
        raise _refused(dataset, f"{must}, got an array of shape {targets.shape}{hint}")
    if len(targets) != num_images:
        raise _refused(dataset, f"{must}, got {len(targets)} for {num_images} images")
    if targets.dtype.kind not in "iu":
        raise _refused(dataset, f"{must}, got {_kind(targets)}, such as {targets[0]!r:.40}")
    low, high = targets.min(), targets.max()
    if low < 0 or high >= num_classes:
        hint = "; if they count from 1, subtract 1" if low == 1 and high == num_classes else ""
        raise _refused(dataset, f"{must}, got {low} to {high} for {num_classes} classes{hint}")
    return torch.from_numpy(targets.astype(np.int64))


def _names(dataset: Any) -> tuple[str, ...]:
    classes = dataset.classes
    if isinstance(classes, np.ndarray) and classes.dtype.kind == "U":
        classes = classes.tolist()
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise _refused(dataset, f"must have a list of names in classes, got {classes!r:.40}")
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise _refused(dataset, f"must have 1 to {MAX_CLASSES:,} names in classes, got {len(classes):,}")
    for name in classes:
        if not isinstance(name, str):
            raise _refused(dataset, f"must have texts in classes, got {name!r:.40}: write str(name) for each")
        if not _is_unicode(name):
            raise _refused(dataset, f"must have texts in classes that UTF-8 can write, got {name!a:.80}: rename it")
    if len(set(classes)) < len(classes):
        twice = [name for name, count in Counter(classes).items() if count > 1]
        raise _refused(dataset, f"must have each name once in classes, got more than once: {listed(twice)}")
    num_bytes = sum(len(name.encode()) for name in classes)
    if num_bytes > MAX_NAME_BYTES:
        raise _refused(dataset, f"must have {MAX_NAME_BYTES:,} bytes of class names at most, got {num_bytes:,}")
    return tuple("".join(name) for name in classes)  # of NumPy's texts, too, which no checkpoint may hold


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
