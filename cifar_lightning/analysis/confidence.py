"""What confidences are worth: how often they are right, and what is gained by leaving out the least of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

NUM_BINS = 15
"""Bins of confidence, as in ``metrics.Evaluation.ece``."""


@dataclass(frozen=True)
class Reliability:
    """Images in bins of equal width by the confidence of their prediction.

    Attributes:
        num_images: Number of images in each bin; one with confidence 1 is in the last.
        confidence: Mean confidence in each bin, in [0, 1]; nan where there are no images.
        acc: Accuracy in each bin, likewise.
    """

    num_images: Int64[Tensor, " b"]
    confidence: Float64[Tensor, " b"]
    acc: Float64[Tensor, " b"]


def reliability(confidence: Float[Tensor, " n"], is_correct: Bool[Tensor, " n"]) -> Reliability:
    """Sort images into bins by confidence in [0, 1].

    Source: Guo et al. 2017 (arXiv:1706.04599).
    """
    edges = torch.linspace(0, 1, NUM_BINS + 1, dtype=confidence.dtype)
    bins = (torch.bucketize(confidence, edges, right=True) - 1).clamp(0, NUM_BINS - 1)
    num_images = bins.bincount(minlength=NUM_BINS)
    confidences, hits = (bins.bincount(values.double(), NUM_BINS) for values in (confidence, is_correct))
    return Reliability(num_images, confidences / num_images, hits / num_images)


@dataclass(frozen=True)
class Coverage:
    """Accuracy on the images that are left when the least confident ones are left out: a point for each limit.

    Attributes:
        num_kept: Images whose confidence is not below the limit, in rising order; the last number is all of them.
        acc: Accuracy on them, in [0, 1].
        limit: The limit: the least confidence that is kept.
        num_images: Number of all images.
    """

    num_kept: Int64[Tensor, " m"]
    acc: Float64[Tensor, " m"]
    limit: Float[Tensor, " m"]
    num_images: int

    def to_reach(self, acc: float) -> int | None:
        """Index of the point that keeps most images with an accuracy of at least so much; None where there is none."""
        reached = (self.acc >= acc).nonzero()
        return int(reached[-1]) if len(reached) else None


def coverage(confidence: Float[Tensor, " n"], is_correct: Bool[Tensor, " n"]) -> Coverage:
    """Leave out images in the order of their confidence. Images of one confidence are kept or left out together.

    Source: Geifman and El-Yaniv 2017 (arXiv:1705.08500): selective classification.
    """
    limits, order = confidence.sort(descending=True, stable=True)
    num_correct = is_correct[order].cumsum(0)
    is_last = torch.cat([limits[1:] != limits[:-1], torch.tensor([True])])
    num_kept = 1 + is_last.nonzero().squeeze(1)
    return Coverage(num_kept, num_correct[is_last].double() / num_kept, limits[is_last], len(confidence))
