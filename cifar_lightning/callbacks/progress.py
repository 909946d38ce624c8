"""Progress of training on the console: a bar on a terminal, a table with a line for each epoch everywhere."""

import logging
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar, Timer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from cifar_lightning.callbacks.curves import TrainingCurves
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.report.tables import duration, shown

log = logging.getLogger(__name__)

_COLUMNS = ("train/loss", "train/acc", "val/loss", "val/acc", "images_per_second")
"""Metrics in the table of epochs; those of a split without images are left out."""

_SHARE_OF_FORECAST = 0.2
"""Share of the first epoch after which the end of a long run is told."""

_LONG_SECONDS = 600
"""A run that is expected to take longer has its end told."""


class EpochProgress(ProgressBar):
    """A table with a line for each epoch, and on a terminal a bar for the epoch that runs, with the time left.

    In a file or pipe only the table is written. The bar is redrawn a few times a second, not at every step:
    Lightning's own bars cost more than a small network's step.

    Args:
        curves: Where the epoch's numbers come from.

    Attributes:
        costs: What an epoch costs beside the others, such as the pixels of an image; of epochs without a number here
            the last one holds.
    """

    _SECONDS_PER_REFRESH = 0.2

    def __init__(self, curves: TrainingCurves) -> None:
        super().__init__()
        self.costs: Sequence[float] = (1.0,)
        self._curves = curves
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._next_refresh = 0.0
        self._columns: list[str] = []
        self._began: tuple[float, float] | None = None  # the time, and the work that had been done by then
        self._forecast_is_due = False

    def disable(self) -> None:
        raise NotImplementedError("Lightning asks this of all ranks but the first, and only that one has this callback")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._columns = [name for name in _COLUMNS if trainer.limit_val_batches or not name.startswith("val/")]
        self._began, self._forecast_is_due = None, True
        log.info("%s", "".join(["epoch".ljust(9), *(_heading(name).rjust(12) for name in self._columns), *_TIMES]))
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
                TextColumn("{task.fields[left]}", markup=False),
            )
            self._bar = Progress(*columns, console=Console(file=sys.stdout), auto_refresh=False, transient=True)
            title = f"epoch {_number(trainer)}"
            self._task = self._bar.add_task(title, total=trainer.num_training_batches, left="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._began is None:  # with the first step, which may be slow for once
            self._began = time.perf_counter(), self._work(trainer, batch_idx + 1)
        if self._bar is not None and (now := time.monotonic()) >= self._next_refresh:
            self._next_refresh = now + self._SECONDS_PER_REFRESH
            left = self._seconds_left(trainer, batch_idx + 1)
            text = "" if left is None else f"{duration(left)} left of the run"
            self._bar.update(self._task, completed=batch_idx + 1, left=text, refresh=True)
        if self._forecast_is_due and batch_idx + 1 >= _SHARE_OF_FORECAST * trainer.num_training_batches:
            self._forecast_is_due = False
            self._tell_end(trainer, pl_module, batch_idx + 1)

    def _tell_end(self, trainer: L.Trainer, pl_module: L.LightningModule, num_batches: int) -> None:
        left = self._seconds_left(trainer, num_batches)
        if left is not None and left > _LONG_SECONDS:
            end = datetime.now() + timedelta(seconds=left)
            day = "" if end.date() == datetime.now().date() else f" on {end:%Y-%m-%d}"
            hint = "; a GPU takes a fraction of it (trainer.accelerator=gpu)" if pl_module.device.type == "cpu" else ""
            log.info("time      about %s more on this device, until %s%s%s", duration(left), f"{end:%H:%M}", day, hint)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()
        assert isinstance(pl_module, ImageClassifier)
        metrics = dict(self._curves.epoch)
        if self._curves.evaluated_at.get("val") == trainer.global_step:
            metrics |= pl_module.scalars("val")
        numbers = [shown(name, metrics[name]) if name in metrics else "" for name in self._columns]
        left = self._seconds_left(trainer, trainer.num_training_batches)  # type: ignore[arg-type]
        times = [duration(time.perf_counter() - self._started), duration(left) if left else ""]
        row = [_number(trainer).ljust(9), *(text.rjust(12) for text in numbers), *(text.rjust(12) for text in times)]
        log.info("%s", "".join(row).rstrip())

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()  # gives the terminal its cursor back

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _work(self, trainer: L.Trainer, num_batches: int) -> float:
        """What has been done, in epochs by their costs, after some batches of the present one."""
        epoch = trainer.current_epoch
        return sum(map(self._cost, range(epoch))) + self._cost(epoch) * num_batches / trainer.num_training_batches

    def _cost(self, epoch: int) -> float:
        return self.costs[min(epoch, len(self.costs) - 1)]

    def _seconds_left(self, trainer: L.Trainer, num_batches: int) -> float | None:
        """Seconds until the end of training, as things go; None where that cannot be told."""
        if self._began is None or (total := self._total_work(trainer)) is None:
            return None
        since, before = self._began
        done = self._work(trainer, num_batches)
        if done <= before:
            return None
        left = max(0.0, (total - done) * (time.perf_counter() - since) / (done - before))
        timers = [timer for timer in trainer.callbacks if isinstance(timer, Timer)]  # type: ignore[attr-defined]
        limits = [limit for timer in timers if (limit := timer.time_remaining()) is not None]  # of trainer.max_time
        return min(left, *limits) if limits else left

    def _total_work(self, trainer: L.Trainer) -> float | None:
        steps_per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
        ends = [float(trainer.max_epochs)] if trainer.max_epochs not in (None, -1) else []
        ends += [trainer.max_steps / steps_per_epoch] if trainer.max_steps != -1 else []
        if not ends or trainer.num_training_batches == float("inf"):
            return None
        whole, rest = divmod(min(ends), 1)
        return sum(map(self._cost, range(int(whole)))) + rest * self._cost(int(whole))


_TIMES = ["time".rjust(12), "left".rjust(12)]


def _heading(name: str) -> str:
    return "images/s" if name == "images_per_second" else name


def _number(trainer: L.Trainer) -> str:
    last = trainer.max_epochs
    return f"{trainer.current_epoch + 1}" + (f"/{last}" if last is not None and last > 0 else "")
