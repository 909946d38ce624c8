"""From a data set in torchvision's form to arrays in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from cifar_lightning.data.download import DownloadError

Dataset = Callable[..., Any]
"""Called as ``dataset(root=..., train=..., download=...)``; has torchvision's ``data``, ``targets`` and ``classes``."""


@dataclass(frozen=True)
class Arrays:
    """A labelled set of images: uint8 pixels, the index of each image's class, and the names of the classes."""

    images: UInt8[Tensor, "n c h w"]
    targets: Int64[Tensor, " n"]
    classes: tuple[str, ...]

    def to(self, device: torch.device | str) -> "Arrays":
        """The same on a device."""
        return Arrays(self.images.to(device), self.targets.to(device), self.classes)


def to_arrays(dataset: Any) -> Arrays:
    """Arrays of a data set in torchvision's form.

    ``dataset.data`` is uint8, (N, H, W, C) as in CIFAR-10 or (N, H, W) as in MNIST. torchvision's CIFAR10 holds a
    (N, C, H, W) array behind its (N, H, W, C) view, so nothing is copied there.
    """
    data = torch.as_tensor(dataset.data)
    images = data.unsqueeze(1) if data.ndim == 3 else data.permute(0, 3, 1, 2)
    targets = torch.as_tensor(dataset.targets, dtype=torch.int64)
    return Arrays(images.contiguous(), targets, tuple(dataset.classes))


def spread(num_images: int, num_chosen: int) -> Int64[Tensor, " s"]:
    """Indices of some images, evenly spread over all: the first ones of a folder would be of one class."""
    num_chosen = min(num_images, num_chosen)
    return torch.arange(num_chosen) * num_images // num_chosen


def channel_statistics(images: UInt8[Tensor, "n c h w"]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels per channel, of values in [0, 1], to six decimals.

    From counts of the 256 values, so exact, and the same whatever the order of the images.
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
    """Open one of the two official splits, downloading it first where it is absent.

    Args:
        dataset: The data set's class.
        root: Folder that holds the data, or will; None for a data set that needs none.
        train: The training images, or the test images.
        options: Further keyword arguments of the class.

    Returns:
        The data set, in torchvision's form.

    Raises:
        ValueError: If ``root`` is not a folder.
        OSError: If the data are neither there nor to be had.
    """
    if root is not None and Path(root).exists() and not Path(root).is_dir():
        raise ValueError(f"root must be a folder that holds the data, or will, got a file: {root}")
    try:
        return dataset(root=root, train=train, download=False, **options)
    except RuntimeError as absent:  # torchvision's word for absent or damaged
        try:
            return dataset(root=root, train=train, download=True, **options)
        except DownloadError:  # which says all there is to say
            raise
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"the data are not in {root} ({absent}) and could not be put there: {error or type(error).__name__}; "
                "name another folder with data.root=, or try the project with data=synthetic"
            ) from error
