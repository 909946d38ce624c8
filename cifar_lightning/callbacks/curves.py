"""Training and evaluation curves into the loggers."""

from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from cifar_lightning import ranks
from cifar_lightning.callbacks.clock import Clock
from cifar_lightning.callbacks.finite import check_finite
from cifar_lightning.classifier import ImageClassifier


@dataclass
class Sums:
    """Sums over training steps: images, their losses, those classified correctly, and seconds."""

    num_images: int = 0
    loss: float = 0.0
    num_correct: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Sums") -> "Sums":
        ours, theirs = asdict(self), asdict(other)
        return Sums(**{name: ours[name] + theirs[name] for name in ours})

    def means(self) -> dict[str, float]:
        """Mean loss and accuracy of the images, and images per second."""
        return {
            "train/loss": self.loss / self.num_images,
            "train/acc": self.num_correct / self.num_images,
            "images_per_second": self.num_images / self.seconds,
        }


class TrainingCurves(Callback):
    """Loss, accuracy, learning rate and images per second, every ``trainer.log_every_n_steps`` steps.

    Each point is the mean over the steps since the last one. ``self.log`` at every step would cost more than a small
    network's whole step; this reads the device only when a point is due. Evaluations get a point each.

    Args:
        clock: Which tells how long the steps took; it stands before this callback.

    Attributes:
        epoch: Means of the epoch that has just ended.
        num_images: Training images in all epochs that have ended.
        evaluated_at: For each split the optimizer steps done at its last evaluation.
    """

    def __init__(self, clock: Clock) -> None:
        self.epoch: dict[str, float] = {}
        self.num_images = 0
        self.evaluated_at: dict[str, int] = {}
        self._clock = clock
        self._sums = Sums()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._sums = Sums()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % every == 0:
            self._log_training(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log_training(trainer, pl_module)  # so that the time of a validation counts nowhere

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log_evaluation(trainer, pl_module, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log_evaluation(trainer, pl_module, "test")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log_training(trainer, pl_module)
        self.epoch = self._sums.means()
        self.num_images += self._sums.num_images

    def _log_training(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        check_finite(trainer, pl_module)
        num_images, loss, num_correct = ranks.summed(pl_module.train_metrics.take())
        if num_images == 0:
            return
        seconds = self._clock.lap()  # after take(), which has waited for the device
        new = Sums(round(num_images), loss, round(num_correct), seconds)
        self._sums += new
        point = new.means() | {"lr": trainer.optimizers[0].param_groups[0]["lr"]}
        for logger in trainer.loggers:
            logger.log_metrics(point, step=trainer.global_step)

    def _log_evaluation(self, trainer: L.Trainer, pl_module: L.LightningModule, split: str) -> None:
        assert isinstance(pl_module, ImageClassifier)
        step = trainer.global_step
        if self.evaluated_at.get(split) != step:  # a resumed run may evaluate again what it had evaluated
            for logger in trainer.loggers:
                logger.log_metrics(pl_module.scalars(split), step=step)
        self.evaluated_at[split] = step

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "num_images": self.num_images,
            "evaluated_at": dict(self.evaluated_at),
            "sums": asdict(self._sums),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch = state_dict["epoch"]
        self.num_images = state_dict["num_images"]
        self.evaluated_at = dict(state_dict["evaluated_at"])
        self._sums = Sums(**state_dict["sums"])
