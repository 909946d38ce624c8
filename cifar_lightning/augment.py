"""Augmentation: pure functions on batches of uint8 images, and the classes that compose them.

All random numbers come from the generator that is passed in, which is on the device of the images; nothing waits for
the device. An augmentation is called as ``(images, epoch, generator) -> images``.
"""

from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Generator, Tensor

Images = UInt8[Tensor, "n c h w"]


def random_flip(images: Images, generator: Generator) -> Images:
    """Each image, or its mirror image, with equal probability."""
    flip = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def random_crop(images: Images, generator: Generator, *, padding: int, mode: Literal["constant", "reflect"]) -> Images:
    """Shift each image by up to ``padding`` pixels in both directions: pad all sides, then crop to the old size.

    Args:
        images: Batch of images.
        generator: Source of the shifts.
        padding: Largest shift in pixels, in [0, min(H, W)).
        mode: What comes in at the border: zeros (``constant``) or the mirrored image (``reflect``).

    Raises:
        ValueError: If ``padding`` is out of its range.

    Source: He et al. 2016 (arXiv:1512.03385, section 4.2), with zeros.
    """
    n, _, height, width = images.shape
    if not 0 <= padding < min(height, width):
        raise ValueError(f"padding must be in [0, {min(height, width)}), got {padding}")
    device = images.device
    shifts = torch.randint(-padding, padding + 1, (2, n, 1), generator=generator, device=device)
    rows = torch.arange(height, device=device) + shifts[0]  # (N, H): where each row is taken from
    columns = torch.arange(width, device=device) + shifts[1]
    source_rows, source_columns = _reflected(rows, height), _reflected(columns, width)
    # Two gathers of whole rows and of columns: no padded copy, and uint8 needs no padding kernel.
    shifted = images[torch.arange(n, device=device)[:, None], :, source_rows].transpose(1, 2)  # (N, C, H, W)
    shifted = shifted.gather(3, source_columns[:, None, None, :].expand(shifted.shape))
    if mode == "constant":
        inside = ((rows == source_rows)[:, :, None] & (columns == source_columns)[:, None, :])[:, None]
        shifted = shifted * inside
    return shifted


def _reflected(index: Tensor, size: int) -> Tensor:
    """Indices beyond [0, size) reflected back into it, without repeating the border."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


class CropFlip:
    """Random crop and random mirror image, the usual augmentation of CIFAR-10.

    Args:
        padding: Largest shift in pixels, at least 0.
        mode: What comes in at the border; see ``random_crop``.

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
