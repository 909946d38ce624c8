"""Progress of training on the console: a bar on a terminal, one line per epoch everywhere."""

import logging
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cifar_lightning.callbacks.curves import TrainingCurves
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.report.tables import shown

log = logging.getLogger(__name__)


class EpochProgress(ProgressBar):
    """A line with the numbers of each epoch, and on a terminal a bar for the epoch that runs.

    In a file or pipe only the lines are written. The bar is redrawn a few times a second, not at every step:
    Lightning's own bars cost more than a small network's step.

    Args:
        curves: Where the epoch's numbers come from.
    """

    _SECONDS_PER_REFRESH = 0.2

    def __init__(self, curves: TrainingCurves) -> None:
        super().__init__()
        self._curves = curves
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._next_refresh = 0.0

    def disable(self) -> None:
        raise NotImplementedError("Lightning asks this of all ranks but the first, and a run has one")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step:  # a run resumed within an epoch has no start of it
            self._start(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start(trainer)

    def _start(self, trainer: L.Trainer) -> None:
        self._stop()
        self._started = time.perf_counter()
        if sys.stdout.isatty():
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(file=sys.stdout), auto_refresh=False, transient=True)
            self._task = self._bar.add_task(self._title(trainer), total=trainer.num_training_batches)
            self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None and (now := time.monotonic()) >= self._next_refresh:
            self._next_refresh = now + self._SECONDS_PER_REFRESH
            self._bar.update(self._task, completed=batch_idx + 1, refresh=True)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()
        assert isinstance(pl_module, ImageClassifier)
        metrics = dict(self._curves.epoch)
        if self._curves.evaluated_at.get("val") == trainer.global_step:
            metrics |= pl_module.scalars("val")
        numbers = "  ".join(f"{name} {shown(name, value)}" for name, value in metrics.items())
        log.info("%s  %s  %.1f s", self._title(trainer), numbers, time.perf_counter() - self._started)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()  # gives the terminal its cursor back

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _title(self, trainer: L.Trainer) -> str:
        last = trainer.max_epochs
        return f"epoch {trainer.current_epoch + 1}" + (f"/{last}" if last is not None and last > 0 else "")
