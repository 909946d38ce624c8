"""Seconds of a run: in training steps, until accuracies are reached, until the test is done."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from cifar_lightning.classifier import ImageClassifier

MILESTONES = (0.90, 0.92, 0.94)
"""Validation accuracies whose time is noted."""


class Clock(Callback):
    """Counts the seconds of training; those of validations do not count.

    Attributes:
        seconds: Seconds in training steps and what surrounds them, up to the last ``lap``.
        seconds_to: Those until a validation first reached each of the ``MILESTONES``; None before.
        began_at: What ``time.perf_counter`` said before the first step.
        tested_at: What it said when the test was done; None before.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.seconds_to: dict[float, float | None] = dict.fromkeys(MILESTONES)
        self.began_at = 0.0
        self.tested_at: float | None = None
        self._since = 0.0

    def lap(self) -> float:
        """Seconds of training since the last lap; they now count in ``seconds``."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self.seconds += seconds
        return seconds

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began_at = time.perf_counter()  # a run resumed after its last step starts no training

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began_at = self._since = time.perf_counter()  # a run resumed within an epoch has no start of it

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()
        if trainer.global_step == 0:  # other callbacks have started by now, and drawn their pictures
            self.began_at = self._since

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()
        assert isinstance(pl_module, ImageClassifier)
        if trainer.sanity_checking:
            return
        for acc, seconds in self.seconds_to.items():
            if seconds is None and pl_module.evaluations["val"].acc >= acc:
                self.seconds_to[acc] = self.seconds

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.tested_at = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "seconds_to": list(self.seconds_to.values())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]
        self.seconds_to = dict(zip(MILESTONES, state_dict["seconds_to"], strict=True))
