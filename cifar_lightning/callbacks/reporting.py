"""The accuracy after each validation, for a search that ends bad runs early."""

from collections.abc import Callable

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from cifar_lightning.classifier import ImageClassifier


class Reporting(Callback):
    """Reports the accuracy of each validation within training.

    It does so when a validation is over and its curves are written, but before the epoch's checkpoint: a run that is
    killed in between validates and reports the same again.

    Args:
        report: Called with the number of epochs done and the accuracy in [0, 1]; what it raises ends the run.
    """

    def __init__(self, report: Callable[[int, float], None]) -> None:
        self._report = report

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._report(trainer.current_epoch + 1, pl_module.evaluations["val"].acc)
