"""From logits and targets to numbers; and running sums of training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

from cifar_lightning.calibration import calibrated, check_targets


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a classifier on N images of K classes. Tensors are on the CPU.

    Attributes:
        num_images: N.
        acc: Share of images whose largest logit is that of the target, in [0, 1].
        balanced_acc: Mean of the accuracies on the classes that have images, in [0, 1].
        loss: Mean cross entropy in nats, without label smoothing.
        ece: Expected calibration error, in [0, 1]: 15 bins of confidence, weighted by their numbers of images.
        brier: Brier score, in [0, 2]: mean squared distance of the probabilities to 1 for the target and 0 elsewhere.
        top5_acc: Share of images whose target has one of the five largest logits, in [0, 1]; None for 10 classes or
            fewer.
        class_acc: Accuracy on the images of each class, in [0, 1]; nan for a class without images.
        confusion: Number of images by target (rows) and prediction (columns).
        preds: Predicted class of each image.
        confidence: Softmax probability of the predicted class, float32, in [0, 1].
        logits: The logits, float32.
    """

    num_images: int
    acc: float
    balanced_acc: float
    loss: float
    ece: float
    brier: float
    top5_acc: float | None
    class_acc: list[float]
    confusion: Int64[Tensor, "k k"]
    preds: Int64[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    logits: Float[Tensor, "n k"]

    def scalars(self) -> dict[str, float]:
        """Return the metrics that curves and tables show."""
        return {"acc": self.acc, "balanced_acc": self.balanced_acc, "loss": self.loss, "ece": self.ece}


def evaluate(logits: Float[Tensor, "n k"], targets: Int64[Tensor, " n"]) -> Evaluation:
    """Evaluate logits against targets.

    Raises:
        ValueError: If there are no images, or a target is not in [0, K).

    Source: Guo et al. 2017 (arXiv:1706.04599) for the calibration error.
    """
    logits, targets = logits.detach().float().cpu(), targets.cpu()
    num_images, num_classes = logits.shape
    check_targets(targets, num_classes)
    preds = logits.argmax(1)
    confusion = multiclass_confusion_matrix(preds, targets, num_classes)
    class_acc = confusion.diag().double() / confusion.sum(1)  # float32 would print 0.937 as 0.9369999...
    return Evaluation(
        num_images=num_images,
        acc=int(confusion.trace()) / num_images,
        balanced_acc=class_acc.nanmean().item(),
        top5_acc=_topk_acc(logits, targets, k=5) if num_classes > 10 else None,
        class_acc=class_acc.tolist(),
        confusion=confusion,
        preds=preds,
        logits=logits,
        **_of_probabilities(logits, targets, preds),
    )


def at_temperature(evaluation: Evaluation, targets: Int64[Tensor, " n"], temperature: float) -> Evaluation:
    """An evaluation whose probabilities are ``softmax(logits / temperature)``; the predictions are the same.

    Source: Guo et al. 2017 (arXiv:1706.04599): temperature scaling.
    """
    targets, logits = targets.cpu(), calibrated(evaluation.logits, temperature)
    return replace(evaluation, logits=logits, **_of_probabilities(logits, targets, evaluation.preds))


def _of_probabilities(
    logits: Float[Tensor, "n k"], targets: Int64[Tensor, " n"], preds: Int64[Tensor, " n"]
) -> dict[str, Any]:
    """Those figures of an evaluation that depend on the probabilities."""
    probabilities = logits.softmax(1)
    of_target = probabilities.gather(1, targets[:, None]).squeeze(1)
    squares = probabilities.square().sum(1, dtype=torch.float64)
    return {
        "loss": F.cross_entropy(logits.double(), targets).item(),
        "ece": multiclass_calibration_error(probabilities, targets, logits.shape[1], n_bins=15).item(),
        "brier": (squares - 2 * of_target.double() + 1).mean().item(),
        "confidence": probabilities.gather(1, preds[:, None]).squeeze(1),
    }


def _topk_acc(logits: Float[Tensor, "n k"], targets: Int64[Tensor, " n"], *, k: int) -> float:
    return int((logits.topk(k).indices == targets[:, None]).sum()) / len(targets)


def as_float(logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Copy logits to float32, even if they are float32 already: a CUDA graph's next replay overwrites its outputs."""
    return logits.to(torch.float32, copy=True)


class RunningMetrics:
    """Sums of the loss and of correct predictions over training steps; the host waits only when they are read.

    A step only keeps its tensors. Every ``_FOLD`` steps they are added up together. For a network as small as the
    tutorial's, a sum at each step would cost as much as a layer.
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
        """Add a training step: its mean loss, logits, targets and number; ``first_not_finite`` returns the number."""
        self._pending.append((loss.detach(), logits.detach(), targets))
        self._steps.append(step)
        if len(self._pending) == self._FOLD:
            self._fold()

    def _fold(self) -> None:
        losses, logits, targets = zip(*self._pending, strict=True)
        self._pending.clear()
        sizes = [len(target) for target in targets]
        stacked = torch.stack(losses)
        # All batches but the last have one size. So two products are enough, and no sizes are copied to the device.
        loss_sum = sizes[0] * stacked[:-1].sum() + sizes[-1] * stacked[-1]
        num_correct = (torch.cat(logits).argmax(1) == torch.cat(targets)).sum()
        sums = torch.stack([loss_sum.float(), num_correct.float()])
        self._sums = sums if self._sums is None else self._sums + sums
        self._num_images += sum(sizes)
        self._is_finite.append(stacked.isfinite())

    def take(self) -> tuple[int, float, int]:
        """Return and reset the number of images, sum of losses and number of correct ones; waits for the device."""
        if self._pending:
            self._fold()
        loss_sum, num_correct = (0.0, 0.0) if self._sums is None else self._sums.tolist()
        taken = (self._num_images, loss_sum, round(num_correct))
        self._sums, self._num_images = None, 0
        self._steps.clear()
        self._is_finite.clear()
        return taken

    def first_not_finite(self) -> int | None:
        """Return the first step since the last ``take`` whose loss is not finite, or None; waits for the device."""
        pending = [torch.stack([loss for loss, *_ in self._pending]).isfinite()] if self._pending else []
        is_finite = torch.cat([*self._is_finite, *pending]).tolist() if self._steps else []
        return None if all(is_finite) else self._steps[is_finite.index(False)]

    def state_dict(self) -> dict[str, Any]:
        """Return all steps since the last ``take`` as they are: an earlier sum would round differently."""
        losses, logits, targets = zip(*self._pending, strict=True) if self._pending else ((), (), ())
        pending = [torch.stack(losses), torch.cat(logits), torch.cat(targets)] if self._pending else []
        sizes = [len(target) for target in targets]
        return {"pending": pending, "sizes": sizes, "sums": self._sums, "num_images": self._num_images}

    def load_state_dict(self, state_dict: dict[str, Any], device: torch.device) -> None:
        """Resume from a state, on a device."""
        self._sums = None if state_dict["sums"] is None else state_dict["sums"].to(device)
        self._num_images = state_dict["num_images"]
        self._pending, self._is_finite = [], []
        self._steps = [0] * len(state_dict["sizes"])  # their losses are finite: others are not saved
        if state_dict["pending"]:
            losses, logits, targets = (tensor.to(device) for tensor in state_dict["pending"])
            sizes = state_dict["sizes"]
            self._pending = list(zip(losses.unbind(), logits.split(sizes), targets.split(sizes), strict=True))

    def add_state_dicts(self, states: Sequence[dict[str, Any]], device: torch.device) -> None:
        """Add what other processes have summed up, whose batches may have had other sizes."""
        if self._pending:
            self._fold()
        for state in states:
            other = RunningMetrics()
            other.load_state_dict(state, device)
            if other._pending:
                other._fold()
            if other._sums is not None:
                self._sums = other._sums if self._sums is None else self._sums + other._sums
            self._num_images += other._num_images
