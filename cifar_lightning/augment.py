"""Augmentation: pure functions on batches of uint8 images, and the classes that compose them.

An augmentation is called as ``(images, epoch, generator) -> images``. The generator is on the device of the images, and
all random numbers come from it. No function here waits for the device.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Generator, Tensor

Images = UInt8[Tensor, "n c h w"]

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""2**64 divided by the golden ratio, as an int64: the multiplier of Fibonacci hashing."""

NUM_CACHED = 2**19
"""Values that are changed at a time on a CPU, whose caches hold them: half the time for images of 224 pixels."""


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


def random_resized_crop(
    images: Images, generator: Generator, *, scale: Sequence[float], ratio: Sequence[float], flip: bool = False
) -> Float[Tensor, "n c h w"]:
    """Crop each image to a random rectangle inside it, resized to the size of the image; mirror half of them.

    Every rectangle that is drawn fits: its ratio is drawn, evenly in the logarithm, from that part of the range for
    which it does. (torchvision draws both anew until they fit.) Pixels are interpolated between neighbours inside the
    rectangle. No image is made smaller, so nothing has to be smoothed.

    Args:
        images: Batch of images.
        generator: Source of the rectangles.
        scale: Least and largest area, as a share of the image's, in (0, 1].
        ratio: Least and largest ratio of width to height, as a multiple of the image's; 1 must be inside the range.
        flip: Whether to mirror each image with probability 1/2.

    Returns:
        Pixels in [0, 255], not rounded.

    Source: Szegedy et al. 2015 (arXiv:1409.4842, section 6).
    """
    n, _, height, width = images.shape
    area, tilt, *places, mirror = torch.rand(5, n, generator=generator, device=images.device)
    area = scale[0] + (scale[1] - scale[0]) * area
    # A ratio r fits an area a if it is within [a, 1 / a].
    least, most = area.log().clamp(min=math.log(ratio[0])), (-area.log()).clamp(max=math.log(ratio[1]))
    half = (least + (most - least) * tilt).mul(0.5).exp()
    shares = area.sqrt() * half, area.sqrt() / half
    mirrored = mirror < 0.5 if flip else torch.zeros_like(mirror, dtype=torch.bool)
    columns, rows = (
        _random_positions(size, share, place)
        for size, share, place in zip((width, height), shares, places, strict=True)
    )
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    grid = torch.stack([columns[:, None, :].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)], dim=-1)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def _random_positions(size: int, share: Float[Tensor, " n"], place: Float[Tensor, " n"]) -> Float[Tensor, "n {size}"]:
    """Positions in the image of the pixels of a crop along one side, as ``grid_sample`` takes them: in [-1, 1].

    Args:
        size: Pixels of the image and of the resized crop.
        share: Length of the crop as a share of the image's.
        place: Where the crop begins, in [0, 1) of what is free.
    """
    length = (size * share).round().clamp(1, size)
    start = (place * (size - length + 1)).floor().clamp(max=size - 1)
    steps = (torch.arange(size, device=share.device) + 0.5) / size
    inside = (steps * length[:, None] - 0.5).clamp(min=0).minimum(length[:, None] - 1)
    return (start[:, None] + inside + 0.5) * (2 / size) - 1


def jitter_colors(
    images: Float[Tensor, "n c h w"], generator: Generator, *, brightness: float, contrast: float, saturation: float
) -> Float[Tensor, "n c h w"]:
    """Change brightness, contrast and saturation of each image, in this order, each by a random factor.

    Args:
        images: Pixels in [0, 255]; they are overwritten.
        generator: Source of the factors.
        brightness: The factor is in [1 - ``brightness``, 1 + ``brightness``]; in [0, 1].
        contrast: Likewise; with a factor of 0 an image has its mean everywhere.
        saturation: Likewise; with a factor of 0 an image is grey. Only images with 3 channels have colours.

    Returns:
        Pixels in [0, 255], not rounded.

    Source: torchvision's ColorJitter, for the definitions.
    """
    draws = 2 * torch.rand(3, len(images), 1, 1, 1, generator=generator, device=images.device) - 1
    bright, sharp, vivid = 1 + brightness * draws[0], 1 + contrast * draws[1], 1 + saturation * draws[2]
    images = images.mul_(bright).clamp_(max=255)
    mean = _grey(images).mean((1, 2, 3), keepdim=True)
    images = images.mul_(sharp).add_(mean * (1 - sharp)).clamp_(0, 255)
    if images.shape[1] == 3:
        grey = _grey(images).mul_(1 - vivid)
        images = images.mul_(vivid).add_(grey).clamp_(0, 255)
    return images


def _random_interval(
    n: int, length: int, size: int, generator: Generator, device: torch.device
) -> Bool[Tensor, "{n} {length}"]:
    """Draw an interval of ``size`` indices for each of N images; True marks the indices inside it."""
    start = torch.randint(length - size + 1, (n, 1), generator=generator, device=device)
    index = torch.arange(length, device=device)
    return (start <= index) & (index < start + size)


def _grey(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 1 h w"]:
    """The brightness of each pixel."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)  # ITU-R BT.601, as torchvision rounds it


def _reflected(index: Tensor, size: int) -> Tensor:
    """Reflect indices outside [0, size) back into it, without repeating the border."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


class Photo:
    """Random crops that are resized, mirror images and changes of colour: for photographs, a few hundred of them even.

    Args:
        scale: Least and largest area of a crop, as a share of the image's; see ``random_resized_crop``.
        ratio: Least and largest ratio of a crop's width to its height.
        flip: Whether half of the images are mirrored; not for letters, for example.
        brightness: Largest change, in [0, 1]; see ``jitter_colors``.
        contrast: Likewise.
        saturation: Likewise; grey images have none.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Szegedy et al. 2015 (arXiv:1409.4842, section 6).
    """

    def __init__(
        self,
        *,
        scale: Sequence[float] = (0.5, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        flip: bool = True,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
    ) -> None:
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be two numbers in (0, 1], the smaller one first, got {list(scale)}")
        if len(ratio) != 2 or not 0 < ratio[0] <= 1 <= ratio[1]:
            raise ValueError(f"ratio must be a number in (0, 1] and one of at least 1, got {list(ratio)}")
        self.colors = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
        for name, value in self.colors.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        self.scale, self.ratio, self.flip = list(scale), list(ratio), flip

    def __call__(self, images: Images, epoch: int, generator: Generator) -> Images:
        if images.device.type != "cpu":
            return self._changed(images, generator)
        num = max(1, NUM_CACHED // images[0].numel())
        return torch.cat([self._changed(some, generator) for some in images.split(num)])

    def _changed(self, images: Images, generator: Generator) -> Images:
        crops = random_resized_crop(images, generator, scale=self.scale, ratio=self.ratio, flip=self.flip)
        return jitter_colors(crops, generator, **self.colors).round_().to(torch.uint8)


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
