"""Augmentation: pure functions on batches of uint8 images, and the classes that compose them.

An augmentation is called as ``(images, epoch, generator) -> images``. The generator is on the device of the images, and
all random numbers come from it. No function here waits for the device.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int64, UInt8
from torch import Generator, Tensor

Images = UInt8[Tensor, "n c h w"]

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""2**64 divided by the golden ratio, as an int64: the multiplier of Fibonacci hashing."""


def random_flip(images: Images, generator: Generator) -> Images:
    """Mirror each image with probability 1/2."""
    flip = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def alternating_flip(images: Images, epoch: int) -> Images:
    """Mirror each image in every other epoch; half of the images start mirrored.

    Two consecutive epochs show each image in both orientations. With independent coins a quarter of the images would be
    mirrored in both epochs and a quarter in neither.

    Args:
        images: Batch of images without random changes, so that ``flip_coins`` is the same in each epoch.
        epoch: Number of the epoch, from 0. An image is mirrored if coin + epoch is odd.

    Source: Jordan 2024 (arXiv:2404.00498), "alternating flip".
    """
    mirrored = flip_coins(images) != (epoch % 2 == 1)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def flip_coins(images: Images) -> Bool[Tensor, " n"]:
    """Draw a fair coin for each image: the top bit of a hash of its pixels.

    The coin depends on the image alone. A batch needs no indices and a checkpoint no table, and order, batch size,
    sharding, resuming and device do not change the coin. Eight pixels make one int64 word. The hash is the sum of the
    words, each times an odd multiple of ``_GOLDEN``, modulo 2**64. Integer sums are exact in any order.

    Source: Knuth, The Art of Computer Programming, volume 3, section 6.4, for the multiplier.
    """
    pixels = images.flatten(1).contiguous()
    if num_missing := -pixels.shape[1] % 8:
        pixels = F.pad(pixels, (0, num_missing))
    words = pixels.view(torch.int64)
    weights = torch.arange(1, 2 * words.shape[1], 2, device=images.device) * _GOLDEN
    return (words * weights).sum(1) < 0


def random_crop(
    images: Images,
    generator: Generator,
    *,
    padding: int,
    mode: Literal["constant", "reflect"],
    size: int | None = None,
) -> UInt8[Tensor, "n c h2 w2"]:
    """Pad all sides of each image, then crop it at a random position.

    Args:
        images: Batch of images.
        generator: Source of the positions.
        padding: Pixels at each side, in [0, min(H, W)).
        mode: Content of the padding: zeros (``constant``) or the reflected image (``reflect``).
        size: Height and width of the crops in pixels, in [1, min(H, W)]; None for the size of the images.

    Raises:
        ValueError: If ``padding`` or ``size`` is out of its range, or ``mode`` is unknown.

    Source: He et al. 2016 (arXiv:1512.03385, section 4.2), who pad with zeros.
    """
    n, _, height, width = images.shape
    if not 0 <= padding < min(height, width):
        raise ValueError(f"padding must be in [0, {min(height, width)}), got {padding}")
    if size is not None and not 1 <= size <= min(height, width):
        raise ValueError(f"size must be in [1, {min(height, width)}], got {size}")
    if mode not in ("constant", "reflect"):
        raise ValueError(f"mode must be constant or reflect, got {mode!r}")
    device = images.device

    def positions(length: int) -> Int64[Tensor, "n new_length"]:
        """Index in the image of each row, or column, of the crops; outside [0, length) in the padding."""
        new_length = size or length
        start = torch.randint(-padding, length - new_length + padding + 1, (n, 1), generator=generator, device=device)
        return torch.arange(new_length, device=device) + start

    rows, columns = positions(height), positions(width)
    source_rows, source_columns = _reflected(rows, height), _reflected(columns, width)
    # Gather rows, then columns: this makes no padded copy, and torch has no padding kernel for uint8.
    crops = images[torch.arange(n, device=device)[:, None], :, source_rows].transpose(1, 2)  # (N, C, H2, W)
    crops = crops.gather(3, source_columns[:, None, None, :].expand(*crops.shape[:3], -1))
    if mode == "constant":
        inside = ((rows == source_rows)[:, :, None] & (columns == source_columns)[:, None, :])[:, None]
        crops = crops * inside
    return crops


def translate(images: Images, *, dy: int, dx: int) -> Images:
    """Move the content of all images down by ``dy`` pixels and right by ``dx``; borders are reflected.

    Args:
        images: Batch of images.
        dy: Shift down in pixels, in (-H, H).
        dx: Shift to the right in pixels, in (-W, W).
    """
    height, width = images.shape[2:]
    rows = _reflected(torch.arange(height, device=images.device) - dy, height)
    columns = _reflected(torch.arange(width, device=images.device) - dx, width)
    return images[:, :, rows][:, :, :, columns]


def cutout(images: Images, generator: Generator, *, size: int, fill: Sequence[int]) -> Images:
    """Paint one square of each image; all positions inside the image are equally likely.

    Args:
        images: Batch of images.
        generator: Source of the positions.
        size: Height and width of the square in pixels, in [0, min(H, W)]; 0 changes no image and draws no numbers.
        fill: Colour of the square, one value per channel, in [0, 255]; one number serves all channels.

    Raises:
        ValueError: If ``size`` is out of its range, or ``fill`` does not fit the channels.

    Source: DeVries and Taylor 2017 (arXiv:1708.04552); their squares may extend over the border.
    """
    n, channels, height, width = images.shape
    if not 0 <= size <= min(height, width):
        raise ValueError(f"size must be in [0, {min(height, width)}], got {size}")
    if size == 0:
        return images
    if len(fill) not in (1, channels):
        raise ValueError(f"fill must have 1 or {channels} numbers, got {list(fill)}")
    inside_rows = _random_interval(n, height, size, generator, images.device)
    inside_columns = _random_interval(n, width, size, generator, images.device)
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]  # (N, H, W)
    values = fill if len(fill) == channels else list(fill) * channels
    # One channel at a time: a tensor of the values would need a copy to the device, which the host waits for.
    painted = [channel.masked_fill(inside, value) for channel, value in zip(images.unbind(1), values, strict=True)]
    return torch.stack(painted, dim=1)


def _random_interval(
    n: int, length: int, size: int, generator: Generator, device: torch.device
) -> Bool[Tensor, "{n} {length}"]:
    """Draw an interval of ``size`` indices for each of N images; True marks the indices inside it."""
    start = torch.randint(length - size + 1, (n, 1), generator=generator, device=device)
    index = torch.arange(length, device=device)
    return (start <= index) & (index < start + size)


def _reflected(index: Tensor, size: int) -> Tensor:
    """Reflect indices outside [0, size) back into it, without repeating the border."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


class CropFlip:
    """Random crop and random mirror image: the usual augmentation of CIFAR-10.

    Args:
        padding: Largest shift in pixels, at least 0.
        mode: Content of the padding; see ``random_crop``.

    Raises:
        ValueError: If ``padding`` is negative.
    """

    def __init__(self, *, padding: int = 4, mode: Literal["constant", "reflect"] = "constant") -> None:
        if padding < 0:
            raise ValueError(f"padding must be at least 0, got {padding}")
        self.padding = padding
        self.mode = mode

    def __call__(self, images: Images, epoch: int, generator: Generator) -> Images:
        return random_flip(random_crop(images, generator, padding=self.padding, mode=self.mode), generator)


class FlipTranslateCutout:
    """Mirror image, random translation with reflected borders, and cutout: the augmentation of CIFAR-10 speedruns.

    The first epochs may use smaller crops of the images; the cost of a step is proportional to their pixels. Crops keep
    the scale of the images. Images that are scaled down do not: the network has to learn again at full size.

    Args:
        flip: ``alternating`` mirrors each image in every other epoch (see ``alternating_flip``), ``random`` with equal
            probability each time, ``none`` never.
        padding: Largest shift in pixels, at least 0; see ``random_crop``.
        cutout_size: Height and width of the square in pixels, at least 0; see ``cutout``.
        mean: Colour of the square per channel, in [0, 1]; one number serves all channels. The mean of the classifier's
            normalisation becomes 0 at the network's input, up to rounding.
        early_sizes: Height and width of the first epochs' crops in pixels, one number per epoch, each at least 1. A
            crop is anywhere inside the image, so these epochs have no translation.

    Raises:
        ValueError: If an argument is out of its range; at a call, if an argument does not fit the images.

    Source: Jordan 2024 (arXiv:2404.00498) for flip and translation; Page 2019, "How to train your ResNet 8:
    bag of tricks", for all three on batches.
    """

    def __init__(
        self,
        *,
        flip: Literal["alternating", "random", "none"] = "alternating",
        padding: int = 2,
        cutout_size: int = 0,
        mean: Sequence[float] = (0.5,),
        early_sizes: Sequence[int] = (),
    ) -> None:
        if flip not in ("alternating", "random", "none"):
            raise ValueError(f"flip must be one of alternating, random, none, got {flip!r}")
        for name, value in {"padding": padding, "cutout_size": cutout_size}.items():
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if not mean or not all(0 <= value <= 1 for value in mean):
            raise ValueError(f"mean must be in [0, 1] per channel, got {list(mean)}")
        if not all(size >= 1 for size in early_sizes):
            raise ValueError(f"early_sizes must be at least 1 each, got {list(early_sizes)}")
        if early_sizes and cutout_size > min(early_sizes):
            raise ValueError(
                f"cutout_size must be at most the smallest of early_sizes, {min(early_sizes)}, got {cutout_size}"
            )
        self.flip = flip
        self.padding = padding
        self.cutout_size = cutout_size
        self.fill = [round(255 * value) for value in mean]
        self.early_sizes = list(early_sizes)

    def __call__(self, images: Images, epoch: int, generator: Generator) -> UInt8[Tensor, "n c h2 w2"]:
        if self.early_sizes and max(self.early_sizes) > min(images.shape[2:]):
            raise ValueError(f"early_sizes must be at most {min(images.shape[2:])} each, got {self.early_sizes}")
        # Flip first: alternating_flip draws its coins from the unchanged pixels.
        if self.flip == "alternating":
            images = alternating_flip(images, epoch)
        elif self.flip == "random":
            images = random_flip(images, generator)
        if epoch < len(self.early_sizes):
            images = random_crop(images, generator, padding=0, mode="reflect", size=self.early_sizes[epoch])
        else:
            images = random_crop(images, generator, padding=self.padding, mode="reflect")
        return cutout(images, generator, size=self.cutout_size, fill=self.fill)
