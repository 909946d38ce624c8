"""Whether an exported file computes what its checkpoint does: both classify the same images."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from cifar_lightning.errors import RunError
from cifar_lightning.export.source import Source

NUM_IMAGES = 256
"""Images that are compared; fewer where they are so large that they would take more memory than ``_MAX_BYTES``."""

RELATIVE_TOLERANCE, LEAST_TOLERANCE = 1e-4, 1e-5
"""Largest difference of logits that is allowed: this share of the largest logit, and no less than the second."""

_FIRST_BATCHES = (1, 7)
_MAX_BYTES, _PIXELS_PER_BATCH = 200_000_000, 2_000_000

Classify = Callable[[UInt8[Tensor, "n c h w"]], Float[Tensor, "n k"]]
"""Raw uint8 images -> logits, on the CPU."""


@dataclass(frozen=True)
class Comparison:
    """How near the logits of an exported file are to those of its checkpoint.

    Attributes:
        num_images: Images that both have classified.
        batch_sizes: Sizes of the batches that the exported file got.
        max_difference: Largest difference of two logits.
        tolerance: Largest one that is allowed.
        num_disagreements: Images of another class, those left out that are nearly a tie: whose two best logits of the
            checkpoint are closer than the tolerance.
        num_ties: Images that are nearly a tie.
        num_classes: Classes that the checkpoint has found among the images.
    """

    num_images: int
    batch_sizes: list[int]
    max_difference: float
    tolerance: float
    num_disagreements: int
    num_ties: int
    num_classes: int

    @property
    def is_good(self) -> bool:
        """Whether the exported file may be used in the checkpoint's place."""
        return self.max_difference <= self.tolerance and self.num_disagreements == 0  # False where it is nan

    def __str__(self) -> str:
        sizes = ", ".join(map(str, dict.fromkeys(self.batch_sizes)))
        return (
            f"{self.num_images} images in batches of {sizes}: largest difference of logits {self.max_difference:.1e} "
            f"(allowed: {self.tolerance:.1e}), {self.num_images - self.num_disagreements} of {self.num_images} of the "
            "same class"
        )


@torch.inference_mode()
def compare(source: Source, classify: Classify) -> Comparison:
    """Hold a file that was exported and opened again against its checkpoint.

    Args:
        source: The checkpoint.
        classify: What the opened file computes.

    Raises:
        RunError: If the file cannot be run.
    """
    images = make_images(source.image_shape)
    sizes = list(_batch_sizes(len(images), source.image_shape))
    step = max(*sizes, min(len(images), _largest_batch(source.image_shape)))  # with Fourier, it takes many at once
    expected = torch.cat([source.reference(batch).double() for batch in images.split(step)])
    try:
        found = torch.cat([classify(batch).double() for batch in images.split(sizes)])
    except (RuntimeError, ValueError, AssertionError) as error:
        raise RunError(f"the exported file cannot be run: {' '.join(str(error).split()):.300}") from error
    if found.shape != expected.shape:
        raise RunError(f"the exported file gives logits of {tuple(found.shape)}, not {tuple(expected.shape)}")
    tolerance = max(LEAST_TOLERANCE, RELATIVE_TOLERANCE * expected.abs().max().item())
    best = expected.topk(2, dim=1).values
    is_tie = best[:, 0] - best[:, 1] < tolerance
    return Comparison(
        num_images=len(images),
        batch_sizes=sizes,
        max_difference=(found - expected).abs().max().item(),
        tolerance=tolerance,
        num_disagreements=int(((found.argmax(1) != expected.argmax(1)) & ~is_tie).sum()),
        num_ties=int(is_tie.sum()),
        num_classes=len(expected.argmax(1).unique()),
    )


def make_images(shape: tuple[int, int, int]) -> UInt8[Tensor, "n c h w"]:
    """The images that are compared, the same each time: one half noise, the other smooth, for several classes."""
    generator = torch.Generator().manual_seed(0)
    num = max(8, min(NUM_IMAGES, _MAX_BYTES // (shape[0] * shape[1] * shape[2]))) // 2
    noise = torch.randint(256, (num, *shape), dtype=torch.uint8, generator=generator)
    coarse = torch.randint(256, (num, shape[0], 3, 3), generator=generator).float()
    smooth = F.interpolate(coarse, shape[1:], mode="bilinear", align_corners=True).round().byte()
    return torch.stack([noise, smooth], 1).flatten(0, 1)


def _batch_sizes(num_images: int, shape: tuple[int, int, int]) -> Iterator[int]:
    yield from _FIRST_BATCHES
    rest, most = num_images - sum(_FIRST_BATCHES), _largest_batch(shape)
    yield from itertools.repeat(most, rest // most)
    if rest % most:
        yield rest % most


def _largest_batch(shape: tuple[int, int, int]) -> int:
    return max(1, _PIXELS_PER_BATCH // (shape[1] * shape[2]))
