"""From a data set in torchvision's form to arrays in memory."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from cifar_lightning.data.checks import checked
from cifar_lightning.data.download import DownloadError
from cifar_lightning.errors import listed

Dataset = Callable[..., Any]
"""A data set's class, or a ``functools.partial`` of it.

It is called as ``dataset(root=..., train=..., download=..., **its own options)`` and gives an object of torchvision's
form, with ``data``, ``targets`` and ``classes``. A class that has options declares them in the attribute ``options``,
which maps the name of each to its type: ``{"image_size": int}``. A data set that brings validation images has the
attribute ``num_val``: they are the last so many of its training images. A class that holds its training images and its
test images against each other has the attribute ``takes_pair``: it gets ``pair=True`` where both are read.
"""


def declared_options(dataset: Dataset) -> Mapping[str, Any]:
    """Names and types of the options that a data set's class declares; empty for torchvision's own classes."""
    return getattr(_class_of(dataset), "options", {})


def takes_pair(dataset: Dataset) -> bool:
    """Whether a data set's class is told that its training images and its test images are both read."""
    return bool(getattr(_class_of(dataset), "takes_pair", False))


def _class_of(dataset: Dataset) -> Dataset:
    while isinstance(dataset, partial):
        dataset = dataset.func
    return dataset


@dataclass(frozen=True)
class Arrays:
    """Labelled images in memory.

    Attributes:
        images: Pixels, uint8, (N, C, H, W).
        targets: Index of each image's class in ``classes``, int64, (N,).
        classes: Names of the classes.
    """

    images: UInt8[Tensor, "n c h w"]
    targets: Int64[Tensor, " n"]
    classes: tuple[str, ...]

    def to(self, device: torch.device | str) -> "Arrays":
        """These arrays on a device."""
        return Arrays(self.images.to(device), self.targets.to(device), self.classes)

    def with_classes(self, classes: Sequence[str]) -> "Arrays":
        """These arrays with targets that point into other classes, by name.

        Raises:
            ValueError: If a class of these arrays is not among them.
        """
        if tuple(classes) == self.classes:
            return self
        if unknown := sorted(set(self.classes) - set(classes)):
            raise ValueError(f"the data have the classes {listed(unknown)}, which are not among {listed(classes)}")
        places = {name: place for place, name in enumerate(classes)}
        return Arrays(self.images, torch.tensor([places[name] for name in self.classes])[self.targets], tuple(classes))

    def fingerprint(self) -> str:
        """A text that differs where an image or a target does: 32 hexadecimal digits of SHA-256."""
        digest = hashlib.sha256(f"{tuple(self.images.shape)}".encode())
        digest.update(self.images.numpy().data)
        digest.update(self.targets.numpy().data)
        return digest.hexdigest()[:32]


def to_arrays(dataset: Any) -> Arrays:
    """Arrays of a data set in torchvision's form.

    ``dataset.data`` is uint8, (N, H, W, C) as in CIFAR-10 or (N, H, W) as in MNIST. torchvision's CIFAR10 shows an
    (N, C, H, W) array as an (N, H, W, C) view, so the call copies no pixels of it.

    Raises:
        ValueError: If something about the data set is not as ``checks.checked`` says.
    """
    data, targets, classes = checked(dataset)
    images = data.unsqueeze(1) if data.ndim == 3 else data.permute(0, 3, 1, 2)
    return Arrays(images.contiguous(), targets, classes)


def spread(num_images: int, num_chosen: int) -> Int64[Tensor, " s"]:
    """Indices of some images, evenly spread over all: the first images of a folder are all of one class."""
    num_chosen = min(num_images, num_chosen)
    return torch.arange(num_chosen) * num_images // num_chosen


def balanced_weights(targets: Int64[Tensor, " n"], num_classes: int) -> list[float]:
    """Weights of the classes with which all count alike in a sum over the images; 0 for a class without images.

    The weight of a class of n images is N / (K n), for N images of K classes, so that the mean weight of an image is 1.
    """
    counts = torch.bincount(targets, minlength=num_classes).double()
    weights = len(targets) / (num_classes * counts.clamp(min=1))
    return torch.where(counts > 0, weights, 0).tolist()


def channel_statistics(images: UInt8[Tensor, "n c h w"]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels in [0, 1], per channel, to six decimals.

    They are computed from counts of the 256 values, so they are exact and do not depend on the order of the images.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        shares = torch.bincount(channel.flatten().int(), minlength=256).double() / channel.numel()
        mean = (shares * values).sum()
        means.append(round(mean.item(), 6))
        stds.append(round((shares * (values - mean).square()).sum().sqrt().item(), 6))
    return means, stds


def fetch(dataset: Dataset, *, root: str | Path | None, train: bool, **options: Any) -> Any:
    """Open the training images or the test images, and download them first where they are absent.

    Args:
        dataset: The data set's class.
        root: Folder that holds the data or will hold them. None for a data set that needs none.
        train: Whether to open the training images or the test images.
        options: The class's own options.

    Returns:
        The data set, in torchvision's form.

    Raises:
        ValueError: If ``root`` is a file, or the class refuses an option.
        OSError: If the data are absent and cannot be downloaded.
    """
    if root is not None and Path(root).exists() and not Path(root).is_dir():
        raise ValueError(f"root must be a folder that holds the data or will hold them, got a file: {root}")
    try:
        return dataset(root=root, train=train, download=False, **options)
    except RuntimeError as absent:  # torchvision raises it where files are absent or damaged
        try:
            return dataset(root=root, train=train, download=True, **options)
        except DownloadError:  # its message is complete
            raise
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"the data are not in {root} ({absent}) and cannot be downloaded: {error or type(error).__name__}; "
                "name another folder with data.root=, or try the project with data=synthetic"
            ) from error
