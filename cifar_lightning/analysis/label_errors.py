"""Labels that may be wrong, by confident learning."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

_TOLERANCE = 1e-6
"""Of a comparison of probabilities."""


@dataclass(frozen=True)
class LabelErrors:
    """Which of N labels are suspected to be wrong.

    Attributes:
        index: The suspected images, the most suspicious first.
        suggested: For each of them the class that it is taken to be of.
        quality: For each of the N images how well its label fits, in [0, 1]: the normalised margin. It is 0 where
            another class is certain, 1 where the label is.
        thresholds: Probability of each of K classes from which an image is taken to be of it: its mean over the images
            with that label; inf for a class without images.
    """

    index: Int64[Tensor, " m"]
    suggested: Int64[Tensor, " m"]
    quality: Float64[Tensor, " n"]
    thresholds: Float64[Tensor, " k"]


def label_errors(probabilities: Float[Tensor, "n k"], targets: Int64[Tensor, " n"]) -> LabelErrors:
    """Find labels that may be wrong, from probabilities of a network that was not trained on these images.

    An image is confidently of a class if the probability of that class is at least the class's threshold; if it is so
    of several classes, it is of the most probable of all. A label is suspected where that class is another one, and the
    label is not the most probable class.

    Source: Northcutt et al. 2021, "Confident learning" (arXiv:1911.00068): the off-diagonal of the confident joint,
    ranked by normalised margin; as in cleanlab's ``find_label_issues(filter_by="confident_learning")``.
    """
    probabilities = probabilities.double()
    num_images, num_classes = probabilities.shape
    of_label = probabilities.gather(1, targets[:, None]).squeeze(1)
    thresholds = targets.bincount(of_label, num_classes) / targets.bincount(minlength=num_classes)
    thresholds = thresholds.nan_to_num(math.inf).clamp(min=2 * _TOLERANCE)
    if num_classes == 1:
        none = torch.empty(0, dtype=torch.int64)
        return LabelErrors(none, none, torch.ones(num_images, dtype=torch.float64), thresholds)
    is_confident = probabilities >= thresholds - _TOLERANCE
    num_confident = is_confident.sum(1)
    most_probable, preds = probabilities.max(1)
    guess = torch.where(num_confident == 1, is_confident.int().argmax(1), preds)
    is_suspected = (num_confident > 0) & (guess != targets) & (most_probable - of_label >= _TOLERANCE)
    of_others = probabilities.scatter(1, targets[:, None], -math.inf).amax(1)
    quality = (of_label - of_others + 1) / 2
    index = is_suspected.nonzero().squeeze(1)
    index = index[quality[index].argsort(stable=True)]
    return LabelErrors(index, guess[index], quality, thresholds)
