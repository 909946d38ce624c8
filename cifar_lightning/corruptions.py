"""Corruptions of uint8 images: twelve kinds in five severities, in torch alone.

They are this project's own, and not CIFAR-10-C, whose images are files (Hendrycks and Dietterich 2019): accuracies on
the two are not to be compared. Lengths, such as the width of a blur, are shares of the image's shorter side, so that
large images are corrupted as small ones are. The random numbers of an image do not depend on the severity, so that a
higher severity is more of the same.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

SEVERITIES = (1, 2, 3, 4, 5)

Pixels = Float[Tensor, "n c h w"]
"""Images whose values are in [0, 1]; a corruption may leave that range, and is clamped to it in the end."""

_Corruption = Callable[[Pixels, float, Generator], Pixels]


def _gaussian_noise(images: Pixels, sd: float, generator: Generator) -> Pixels:
    """Add normal noise, to each channel its own."""
    return images + sd * torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)


def _impulse_noise(images: Pixels, share: float, generator: Generator) -> Pixels:
    """Make a share of the values black or white: salt and pepper."""
    drawn = _drawn(images, generator, *images.shape)
    return torch.where(drawn > 1 - share / 2, 1.0, torch.where(drawn < share / 2, 0.0, images))


def _gaussian_blur(images: Pixels, sigma: float, generator: Generator) -> Pixels:
    """Blur with a Gaussian, as a product with a matrix from each side: an image may be smaller than the Gaussian."""
    height, width = images.shape[-2:]
    sigma *= min(height, width)
    return _gaussian(height, sigma, images) @ images @ _gaussian(width, sigma, images).T


def _gaussian(size: int, sigma: float, like: Tensor) -> Float[Tensor, "{size} {size}"]:
    """Weights of each pixel of a row in each blurred one; beyond the border the row is mirrored, again and again."""
    radius = math.ceil(4 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=like.device)
    weights = (-((offsets.to(like.dtype) / sigma) ** 2) / 2).exp()
    source = (torch.arange(size, device=like.device)[:, None] + offsets) % (2 * size)
    source = torch.where(source < size, source, 2 * size - 1 - source)
    matrix = torch.zeros(size, size, device=like.device, dtype=like.dtype)
    return matrix.scatter_add_(1, source, (weights / weights.sum()).expand(size, -1))


def _motion_blur(images: Pixels, length: float, generator: Generator) -> Pixels:
    """Average each image over a straight way, in a direction of its own."""
    angles = math.pi * _drawn(images, generator, len(images))
    length *= min(images.shape[-2:])
    num_places = 2 * math.ceil(length / 2) + 1  # no further than a pixel from one to the next
    total = torch.zeros_like(images)
    for i in range(num_places):
        total += _moved(images, angles, length * (i / (num_places - 1) - 0.5))
    return total / num_places


def _pixelation(images: Pixels, length: float, generator: Generator) -> Pixels:
    """Show the image in fewer pixels: each becomes the mean of its cell, of so many pixels in height and width."""
    height, width = images.shape[-2:]
    length *= min(height, width)
    return _cells(height, length, images) @ images @ _cells(width, length, images).T


def _cells(size: int, length: float, like: Tensor) -> Float[Tensor, "{size} {size}"]:
    """Weights of each pixel of a row in the mean of each one's cell."""
    num_cells = min(size, max(1, round(size / length)))
    cell = torch.arange(size, device=like.device) * num_cells // size
    same = (cell[:, None] == cell).to(like.dtype)
    return same / same.sum(1, keepdim=True)


def _brightness(images: Pixels, shift: float, generator: Generator) -> Pixels:
    """Make each image brighter or darker."""
    return images + shift * _signs(images, generator)[:, None, None, None]


def _contrast(images: Pixels, share: float, generator: Generator) -> Pixels:
    """Draw all values towards the image's mean; a share of the contrast is left."""
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, share)


def _saturation(images: Pixels, share: float, generator: Generator) -> Pixels:
    """Draw the colours towards grey; a share of the saturation is left."""
    luma = torch.tensor([0.299, 0.587, 0.114], device=images.device, dtype=images.dtype).reshape(1, 3, 1, 1)
    return torch.lerp((images * luma).sum(1, keepdim=True), images, share)


def _fog(images: Pixels, density: float, generator: Generator) -> Pixels:
    """Blend with light grey clouds."""
    clouds = torch.zeros_like(images[:, :1])
    for cells, weight in ((3, 0.6), (6, 0.4)):
        drawn = _drawn(images, generator, len(images), 1, cells, cells)
        clouds += weight * F.interpolate(drawn, images.shape[-2:], mode="bilinear", align_corners=False)
    return torch.lerp(images, 0.6 + 0.4 * clouds, density)


def _rotation(images: Pixels, degrees: float, generator: Generator) -> Pixels:
    """Turn each image about its centre, to the left or to the right; what comes in from outside is mirrored."""
    height, width = images.shape[-2:]
    angles = math.radians(degrees) * _signs(images, generator)
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    rows = [torch.stack([cos, -sin * height / width, zero], 1), torch.stack([sin * width / height, cos, zero], 1)]
    return _warped(images, torch.stack(rows, 1))


def _translation(images: Pixels, share: float, generator: Generator) -> Pixels:
    """Move each image in a direction of its own, by whole pixels; what comes in from outside is mirrored."""
    angles = 2 * math.pi * _drawn(images, generator, len(images))
    return _moved(images, angles, share * min(images.shape[-2:]), whole=True)


def _occlusion(images: Pixels, share: float, generator: Generator) -> Pixels:
    """Cover a square of each image with grey. A larger square covers the smaller ones."""
    covered = torch.ones(1, dtype=torch.bool, device=images.device)
    side = max(1, round(share * min(images.shape[-2:])))
    for axis in (-2, -1):
        size = images.shape[axis]
        start = (_drawn(images, generator, len(images)) * (size - side)).round()
        at = torch.arange(size, device=images.device) - start[:, None]
        inside = (at >= 0) & (at < side)
        covered = covered & (inside[:, None, :, None] if axis == -2 else inside[:, None, None, :])
    return torch.where(covered, 0.5, images)


def _drawn(images: Pixels, generator: Generator, *shape: int) -> Float[Tensor, "..."]:
    """Random numbers in [0, 1), like the images."""
    return torch.rand(shape, generator=generator, device=images.device, dtype=images.dtype)


def _signs(images: Pixels, generator: Generator) -> Float[Tensor, " n"]:
    drawn = _drawn(images, generator, len(images))
    return 1 - 2 * (drawn < 0.5).to(images.dtype)


def _moved(images: Pixels, angles: Float[Tensor, " n"], length: float, *, whole: bool = False) -> Pixels:
    """Move each image in its direction, by so many pixels."""
    height, width = images.shape[-2:]
    dx, dy = length * angles.cos(), length * angles.sin()
    if whole:
        dx, dy = dx.round(), dy.round()
    one, zero = torch.ones_like(angles), torch.zeros_like(angles)
    rows = [torch.stack([one, zero, 2 * dx / width], 1), torch.stack([zero, one, 2 * dy / height], 1)]
    return _warped(images, torch.stack(rows, 1))


def _warped(images: Pixels, affine: Float[Tensor, "n 2 3"]) -> Pixels:
    """Look each pixel up where an affine map sends it; beyond the borders the image is mirrored."""
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


_KINDS: dict[str, tuple[_Corruption, Sequence[float]]] = {
    "gaussian_noise": (_gaussian_noise, (0.03, 0.06, 0.09, 0.13, 0.18)),
    "impulse_noise": (_impulse_noise, (0.01, 0.03, 0.06, 0.1, 0.15)),
    "gaussian_blur": (_gaussian_blur, (0.015, 0.022, 0.03, 0.04, 0.055)),
    "motion_blur": (_motion_blur, (0.08, 0.13, 0.18, 0.24, 0.32)),
    "pixelation": (_pixelation, (1 / 24, 1 / 19, 1 / 16, 1 / 13, 1 / 10)),
    "brightness": (_brightness, (0.06, 0.12, 0.18, 0.25, 0.33)),
    "contrast": (_contrast, (0.75, 0.55, 0.4, 0.28, 0.18)),
    "saturation": (_saturation, (0.7, 0.5, 0.3, 0.15, 0.0)),
    "fog": (_fog, (0.2, 0.35, 0.5, 0.62, 0.74)),
    "rotation": (_rotation, (6, 12, 18, 25, 33)),
    "translation": (_translation, (0.06, 0.1, 0.15, 0.2, 0.26)),
    "occlusion": (_occlusion, (0.2, 0.3, 0.4, 0.5, 0.6)),
}
"""Each kind, and its strength by severity."""


def kinds(num_channels: int) -> list[str]:
    """Names of the corruptions of images of so many channels, in their order; grey images have no saturation."""
    return [name for name in _KINDS if name != "saturation" or num_channels == 3]


def corrupt(
    images: UInt8[Tensor, "n c h w"], name: str, severity: int, generator: Generator
) -> UInt8[Tensor, "n c h w"]:
    """Corrupt a batch of images.

    Args:
        images: Batch of images of any size; of 3 channels for ``saturation``.
        name: One of ``kinds``.
        severity: From 1, little, to 5, much.
        generator: Source of all random numbers, on the device of the images. In the same state it gives each severity
            the same numbers.

    Raises:
        ValueError: If there is no such corruption of these images.
    """
    if name not in (allowed := kinds(images.shape[1])) or severity not in SEVERITIES:
        raise ValueError(
            f"a corruption of {images.shape[1]} channels must be one of {', '.join(allowed)} with a severity of 1 to "
            f"5, got {name!r} with {severity}"
        )
    apply, strengths = _KINDS[name]
    changed = apply(images.float() / 255, strengths[severity - 1], generator)
    return (255 * changed).round().clamp(0, 255).to(torch.uint8)
