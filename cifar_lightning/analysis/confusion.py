"""From a confusion matrix to figures of each class, and to the pairs of classes that are confused."""

from dataclasses import dataclass

from jaxtyping import Float64, Int64
from torch import Tensor


@dataclass(frozen=True)
class PerClass:
    """Figures of each of K classes; those in [0, 1] are nan where they are not defined.

    Attributes:
        num_images: Images of the class.
        num_predicted: Images predicted as the class.
        recall: Share of the images of the class that are predicted as it, which is its accuracy.
        precision: Share of the images predicted as the class that are of it.
        f1: Harmonic mean of the two; 0 where an image is of the class, or predicted as it, and none is both.
    """

    num_images: Int64[Tensor, " k"]
    num_predicted: Int64[Tensor, " k"]
    recall: Float64[Tensor, " k"]
    precision: Float64[Tensor, " k"]
    f1: Float64[Tensor, " k"]


def per_class(confusion: Int64[Tensor, "k k"]) -> PerClass:
    """Figures of each class from the numbers of images by target (rows) and prediction (columns)."""
    num_images, num_predicted, hits = confusion.sum(1), confusion.sum(0), confusion.diag().double()
    return PerClass(
        num_images=num_images,
        num_predicted=num_predicted,
        recall=hits / num_images,
        precision=hits / num_predicted,
        f1=2 * hits / (num_images + num_predicted),
    )


def most_confused(confusion: Int64[Tensor, "k k"], at_most: int) -> list[tuple[int, int, int]]:
    """The pairs of classes that are confused most often: target, prediction and number of images, most images first.

    Only cells that are not 0 are looked at: there are no more of them than images.
    """
    rows, columns = confusion.nonzero().unbind(1)
    rows, columns = (index[rows != columns] for index in (rows, columns))
    counts = confusion[rows, columns]
    order = counts.argsort(descending=True, stable=True)[:at_most]
    return list(zip(rows[order].tolist(), columns[order].tolist(), counts[order].tolist(), strict=True))


def taken_for(confusion: Int64[Tensor, "k k"]) -> dict[int, tuple[int, int]]:
    """For each class with mistakes the one that its images are most often taken for, and how many of them are."""
    found: dict[int, tuple[int, int]] = {}
    for target, pred, num_images in most_confused(confusion, confusion.numel()):
        found.setdefault(target, (pred, num_images))
    return found
