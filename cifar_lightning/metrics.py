"""From logits and targets to numbers, test-time augmentation among it; and running sums of training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from cifar_lightning.augment import Images, translate


@dataclass(frozen=True)
class Evaluation:
    """How a classifier did on N images of K classes. Tensors are on the CPU.

    Attributes:
        num_images: N.
        acc: Share of images whose largest logit is the target's, in [0, 1].
        loss: Mean cross entropy in nats, without label smoothing.
        ece: Expected calibration error, in [0, 1]: 15 bins of confidence, weighted by their images.
        class_acc: Accuracy on the images of each class, in [0, 1]; nan for a class without images.
        confusion: Number of images by target (rows) and prediction (columns).
        preds: Predicted class of each image.
        confidence: Softmax of the predicted class, float32.
    """

    num_images: int
    acc: float
    loss: float
    ece: float
    class_acc: list[float]
    confusion: Int64[Tensor, "k k"]
    preds: Int64[Tensor, " n"]
    confidence: Float[Tensor, " n"]

    def scalars(self) -> dict[str, float]:
        """The numbers that curves and tables show."""
        return {"acc": self.acc, "loss": self.loss, "ece": self.ece}


def evaluate(logits: Float[Tensor, "n k"], targets: Int64[Tensor, " n"]) -> Evaluation:
    """Judge logits against targets.

    Raises:
        ValueError: If there are no images, or a target is no class.

    Source: Guo et al. 2017 (arXiv:1706.04599) for the calibration error.
    """
    logits, targets = logits.detach().float().cpu(), targets.cpu()
    num_images, num_classes = logits.shape
    if num_images == 0:
        raise ValueError("there must be at least 1 image to judge, got 0")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"targets must be in [0, {num_classes}), got {low} to {high}")
    preds = logits.argmax(1)
    probabilities = logits.softmax(1)
    confusion = multiclass_confusion_matrix(preds, targets, num_classes)
    return Evaluation(
        num_images=num_images,
        acc=int(confusion.trace()) / num_images,
        loss=F.cross_entropy(logits.double(), targets).item(),
        ece=multiclass_calibration_error(probabilities, targets, num_classes, n_bins=15).item(),
        class_acc=(confusion.diag().double() / confusion.sum(1)).tolist(),  # float32 would print 0.937 as 0.9369999...
        confusion=confusion,
        preds=preds,
        confidence=probabilities.gather(1, preds[:, None]).squeeze(1),
    )


def as_float(logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """A float32 copy, even where they are in float32: a CUDA graph's next replay overwrites its outputs."""
    return logits.to(torch.float32, copy=True)


@torch.no_grad()
def augmented_logits(
    classify: Callable[[Images], Tensor], images: Images, *, level: int
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Test-time augmentation: logits of the images, and the weighted mean of those of several views of each.

    Args:
        classify: Raw uint8 images -> logits (N, K), such as an ``ImageClassifier`` in evaluation mode.
        images: Batch of images.
        level: 0 for the images alone; 1 with their mirror images; 2 for six views: these two at weights of 1/4, and at
            1/8 each the same of the images moved by a pixel, up and left or down and right, with reflected borders.

    Returns:
        Both in float32; at level 0 they are one and the same.

    Raises:
        ValueError: If there is no such level.

    Source: Jordan 2024 (arXiv:2404.00498), "multi-crop evaluation", for level 2.
    """
    if level not in (0, 1, 2):
        raise ValueError(f"level must be 0, 1 or 2, got {level}")

    def with_mirror_image(view: Images, logits: Tensor) -> Tensor:
        return (logits + as_float(classify(view.flip(-1)))) / 2

    plain = as_float(classify(images))
    if level == 0:
        return plain, plain
    centred = with_mirror_image(images, plain)
    if level == 1:
        return plain, centred
    views = [translate(images, dy=shift, dx=shift) for shift in (-1, 1)]
    moved = [with_mirror_image(view, as_float(classify(view))) for view in views]
    return plain, centred / 2 + (moved[0] + moved[1]) / 4


class RunningMetrics:
    """Sums of loss and of correct predictions over training steps, without a host sync until they are read.

    A step only keeps its tensors; every ``_FOLD`` steps they are added up in one go. For a network as small as the
    tutorial's, reducing at each step would cost as much as a layer.
    """

    _FOLD = 64

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._sums: Tensor | None = None
        self._num_images = 0
        self._steps: list[int] = []
        self._is_finite: list[Tensor] = []

    def update(
        self, loss: Float[Tensor, ""], logits: Float[Tensor, "b k"], targets: Int64[Tensor, " b"], *, step: int
    ) -> None:
        """Take in a step: its mean loss, its logits, and what it is to be called where the loss is not finite."""
        self._pending.append((loss.detach(), logits.detach(), targets))
        self._steps.append(step)
        if len(self._pending) == self._FOLD:
            self._fold()

    def _fold(self) -> None:
        losses, logits, targets = zip(*self._pending, strict=True)
        self._pending.clear()
        sizes = [len(target) for target in targets]
        stacked = torch.stack(losses)
        # Full batches have one size: weigh the last, smaller one apart instead of copying sizes to the device.
        loss_sum = sizes[0] * stacked[:-1].sum() + sizes[-1] * stacked[-1]
        num_correct = (torch.cat(logits).argmax(1) == torch.cat(targets)).sum()
        sums = torch.stack([loss_sum.float(), num_correct.float()])
        self._sums = sums if self._sums is None else self._sums + sums
        self._num_images += sum(sizes)
        self._is_finite.append(stacked.isfinite())

    def take(self) -> tuple[int, float, int]:
        """Number of images, sum of their losses and number of correct ones since the last call; a device sync."""
        if self._pending:
            self._fold()
        loss_sum, num_correct = (0.0, 0.0) if self._sums is None else self._sums.tolist()
        taken = (self._num_images, loss_sum, round(num_correct))
        self._sums, self._num_images = None, 0
        self._steps.clear()
        self._is_finite.clear()
        return taken

    def first_not_finite(self) -> int | None:
        """The first step since the last call of ``take`` whose loss is not finite, if there is one; a device sync."""
        pending = [torch.stack([loss for loss, *_ in self._pending]).isfinite()] if self._pending else []
        is_finite = torch.cat([*self._is_finite, *pending]).tolist() if self._steps else []
        return None if all(is_finite) else self._steps[is_finite.index(False)]

    def state_dict(self) -> dict[str, Any]:
        """What has been taken in since the last call of ``take``, as it is: adding up early would round differently."""
        losses, logits, targets = zip(*self._pending, strict=True) if self._pending else ((), (), ())
        pending = [torch.stack(losses), torch.cat(logits), torch.cat(targets)] if self._pending else []
        sizes = [len(target) for target in targets]
        return {"pending": pending, "sizes": sizes, "sums": self._sums, "num_images": self._num_images}

    def load_state_dict(self, state_dict: dict[str, Any], device: torch.device) -> None:
        """Go on from a state, on a device."""
        self._sums = None if state_dict["sums"] is None else state_dict["sums"].to(device)
        self._num_images = state_dict["num_images"]
        self._pending, self._is_finite = [], []
        self._steps = [0] * len(state_dict["sizes"])  # finite, or they would not have been saved
        if state_dict["pending"]:
            losses, logits, targets = (tensor.to(device) for tensor in state_dict["pending"])
            sizes = state_dict["sizes"]
            self._pending = list(zip(losses.unbind(), logits.split(sizes), targets.split(sizes), strict=True))
