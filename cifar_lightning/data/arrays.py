"""From a data set in torchvision's form to arrays, in memory or in a mapped file."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from cifar_lightning.data.checks import checked
from cifar_lightning.data.download import DownloadError
from cifar_lightning.data.mapped import MappedImages, is_mapped, read_ahead
from cifar_lightning.errors import listed

Dataset = Callable[..., Any]
"""A data set's class, or a ``functools.partial`` of it.

It is called as ``dataset(root=..., train=..., download=..., **its own options)`` and gives an object of torchvision's
form, with ``data``, ``targets`` and ``classes``. A class that has options declares them in the attribute ``options``,
which maps the name of each to its type: ``{"image_size": int}``. A data set that brings validation images has the
attribute ``num_val``: they are the last so many of its training images. One of files has their paths in ``files``. A
class that checks its training images and its test images together has the attribute ``takes_pair``: it gets
``pair=True`` where both are read.
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


BYTES_PER_PART = 2**25
"""Images are gathered so many bytes at a time, or one by one if they are larger."""


@dataclass(frozen=True)
class Arrays:
    """Labelled images, in memory or in a mapped file.

    Attributes:
        images: Pixels, uint8, (N, C, H, W). Those in a file stay on the CPU; this is a view of them, channels last in
            memory, to look at single images.
        targets: Index of each image's class in ``classes``, int64, (N,).
        classes: Names of the classes.
        mapped: Reads ``images`` that lie in a file; None for those in memory.
    """

    images: UInt8[Tensor, "n c h w"]
    targets: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    mapped: MappedImages | None = None

    @property
    def device(self) -> torch.device:
        """Where the targets are, and the images that ``gather`` gives."""
        return self.targets.device

    def to(self, device: torch.device | str) -> "Arrays":
        """These arrays on a device, to which images in a file come by ``gather`` alone."""
        images = self.images.to(device) if self.mapped is None else self.images
        return replace(self, images=images, targets=self.targets.to(device))

    def gather(self, index: Int64[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
        """A copy of chosen images, contiguous and on the device."""
        return self.images[index] if self.mapped is None else self.mapped.read(index.cpu()).to(self.device)

    def gather_parts(
        self, order: Int64[Tensor, " m"], size: int
    ) -> Iterator[tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, " b"]]]:
        """Images and targets in an order, so many at a time. Those in a file are read ahead of their use.

        Args:
            order: Indices of images, on the CPU.
            size: Images per part; the last one may be smaller.
        """
        chosen = order.to(self.device).split(size)
        if self.mapped is None:
            yield from ((self.images[index], self.targets[index]) for index in chosen)
            return
        pinned = self.device.type == "cuda"
        with closing(read_ahead(partial(self.mapped.read, pinned=pinned), order.split(size))) as parts:
            for images, index in zip(parts, chosen, strict=True):
                yield images.to(self.device, non_blocking=pinned), self.targets[index]

    def _all_images(self) -> Iterator[UInt8[Tensor, "b c h w"]]:
        """All images on the CPU, contiguous, some at a time."""
        size = images_in(BYTES_PER_PART, self.images.shape)
        if self.mapped is None:
            return (images.contiguous() for images in self.images.split(size))
        return read_ahead(self.mapped.read, torch.arange(len(self.images)).split(size))

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
        targets = torch.tensor([places[name] for name in self.classes])[self.targets]
        return replace(self, targets=targets, classes=tuple(classes))

    def fingerprint(self) -> str:
        """A text that differs where an image or a target does: 32 hexadecimal digits of SHA-256."""
        digest = hashlib.sha256(f"{tuple(self.images.shape)}".encode())
        for images in self._all_images():
            digest.update(images.numpy().data)
        digest.update(self.targets.numpy().data)
        return digest.hexdigest()[:32]


def images_in(num_bytes: int, shape: Sequence[int]) -> int:
    """How many images of a shape (..., C, H, W) have so many bytes at most; at least 1."""
    return max(1, num_bytes // math.prod(shape[-3:]))


def to_arrays(dataset: Any) -> Arrays:
    """Arrays of a data set in torchvision's form.

    ``dataset.data`` is uint8, (N, H, W, C) as in CIFAR-10 or (N, H, W) as in MNIST. torchvision's CIFAR10 shows an
    (N, C, H, W) array as an (N, H, W, C) view, so the call copies no pixels of it. Of an array that ``np.memmap`` has
    mapped, the pixels stay in the file.

    Raises:
        ValueError: If something about the data set is not as ``checks.checked`` says.
    """
    data, targets, classes = checked(dataset)
    images = data.unsqueeze(1) if data.ndim == 3 else data.permute(0, 3, 1, 2)
    if is_mapped(dataset.data):
        return Arrays(images, targets, classes, MappedImages(dataset.data))
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


def channel_statistics(parts: Iterable[UInt8[Tensor, "_ c h w"]]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels in [0, 1], per channel, to six decimals.

    They are computed from counts of the 256 values, so they are exact and do not depend on the order of the images.

    Args:
        parts: All images, some at a time.
    """
    counts = reduce(torch.add, (torch.stack([_counts(channel) for channel in images.unbind(1)]) for images in parts))
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for of_channel in counts:
        shares = of_channel.double() / of_channel.sum()
        mean = (shares * values).sum()
        means.append(round(mean.item(), 6))
        stds.append(round((shares * (values - mean).square()).sum().sqrt().item(), 6))
    return means, stds


def _counts(channel: UInt8[Tensor, "n h w"]) -> Int64[Tensor, " 256"]:
    return torch.bincount(channel.flatten().int(), minlength=256)


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
