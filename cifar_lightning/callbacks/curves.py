"""Training curves into the loggers."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from cifar_lightning.classifier import ImageClassifier

MILESTONES = (0.90, 0.92, 0.94)
"""Validation accuracies whose time is noted."""


class TrainingCurves(Callback):
    """Loss, accuracy, learning rate and images per second, every ``trainer.log_every_n_steps`` steps.

    Each point is the mean over the steps since the last one. ``self.log`` at every step would cost more than a small
    network's whole step; this reads the device only when a point is due.

    ``epoch`` holds the means of the epoch that has just ended, and ``seconds`` the time spent in training steps and
    what surrounds them, validation not included. ``seconds_to`` holds those until a validation first reached each of
    the ``MILESTONES``. ``began_at`` is what ``time.perf_counter`` said before the first step.
    """

    def __init__(self) -> None:
        self.epoch: dict[str, float] = {}
        self.seconds = 0.0
        self.seconds_to: dict[float, float | None] = dict.fromkeys(MILESTONES)
        self.began_at = 0.0
        self.num_images = 0
        self._epoch_sums = (0, 0.0, 0)
        self._epoch_seconds = 0.0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began_at = time.perf_counter()  # a run resumed after its last step starts no training

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began_at = self._since = time.perf_counter()  # a run resumed within an epoch has no start of it

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_sums = (0, 0.0, 0)
        self._epoch_seconds = 0.0
        self._since = time.perf_counter()
        if trainer.global_step == 0:  # other callbacks have begun by now, and drawn their pictures
            self.began_at = self._since

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % every == 0:
            self._log(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._log(trainer, pl_module)  # so that the time of a validation counts nowhere

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()
        assert isinstance(pl_module, ImageClassifier)
        if trainer.sanity_checking:
            return
        for acc, seconds in self.seconds_to.items():
            if seconds is None and pl_module.evaluations["val"].acc >= acc:
                self.seconds_to[acc] = self.seconds + self._epoch_seconds

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(trainer, pl_module)
        num_images, loss_sum, num_correct = self._epoch_sums
        self.num_images += num_images
        self.epoch = {
            "train/loss": loss_sum / num_images,
            "train/acc": num_correct / num_images,
            "images_per_second": num_images / self._epoch_seconds,
        }
        self.seconds, self._epoch_seconds = self.seconds + self._epoch_seconds, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "seconds": self.seconds,
            "seconds_to": list(self.seconds_to.values()),
            "num_images": self.num_images,
            "epoch_sums": list(self._epoch_sums),
            "epoch_seconds": self._epoch_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch = state_dict["epoch"]
        self.seconds = state_dict["seconds"]
        self.seconds_to = dict(zip(MILESTONES, state_dict["seconds_to"], strict=True))
        self.num_images = state_dict["num_images"]
        self._epoch_sums = tuple(state_dict["epoch_sums"])
        self._epoch_seconds = state_dict["epoch_seconds"]

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        pl_module.check_finite()
        num_images, loss_sum, num_correct = pl_module.train_metrics.take()
        if num_images == 0:
            return
        now = time.perf_counter()  # after take(), which has waited for the device
        seconds, self._since = now - self._since, now
        self._epoch_seconds += seconds
        images, loss, correct = self._epoch_sums
        self._epoch_sums = (images + num_images, loss + loss_sum, correct + num_correct)
        metrics = {
            "train/loss": loss_sum / num_images,
            "train/acc": num_correct / num_images,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "images_per_second": num_images / seconds,
        }
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
