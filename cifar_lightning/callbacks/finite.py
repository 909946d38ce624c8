"""The watch over the loss: a run stops at the first one that is NaN or infinite."""

import math

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from cifar_lightning.classifier import ImageClassifier


class NonFiniteLoss(RuntimeError):
    """The loss has become NaN or infinite."""


class FiniteWatch(Callback):
    """Stops at a loss that is not finite, before its gradients are computed.

    It reads the loss at each step of a CPU. Another device would have to be waited for, so there it does nothing:
    ``check_finite`` looks at all losses when the curves are read or a checkpoint is due.
    """

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        if loss.device.type == "cpu" and not math.isfinite(loss.item()):
            raise _non_finite(trainer, trainer.global_step)


def check_finite(trainer: L.Trainer, classifier: ImageClassifier) -> None:
    """Look at the losses since ``train_metrics`` were last taken; waits for the device.

    Raises:
        NonFiniteLoss: If one of them is not finite.
    """
    if (step := classifier.train_metrics.first_not_finite()) is not None:
        raise _non_finite(trainer, step)


def _non_finite(trainer: L.Trainer, step: int) -> NonFiniteLoss:
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    return NonFiniteLoss(
        f"the loss of step {step} (epoch {trainer.current_epoch}, both from 0) is not finite, at a learning rate of "
        f"{rate:g}: try a lower optimizer.lr, trainer.gradient_clip_val=1 or trainer.precision=32-true"
    )
