"""When a run saves itself."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from cifar_lightning.checkpoint.write import DurableIO
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.errors import RunError, one_line
from cifar_lightning.runs.signals import signals

log = logging.getLogger(__name__)


class RunCheckpoints(Checkpoint):
    """Keeps ``last.ckpt``, from which the run can be resumed, and with a validation split ``best.ckpt`` by ``val/acc``.

    ``last.ckpt`` is written at the end of each epoch, or of the last one, every few minutes within one, and when a
    signal asks the run to stop. Its place is always one that training goes on from bit for bit: where gradients are
    being accumulated, a validation is due or the epoch is over, saving waits for the step or the epoch's end after it.

    Args:
        folder: Where the files go.
        every_minutes: Minutes between two saves within an epoch, at least 0; 0 saves after each step.
        every_epoch: Whether each epoch ends with a save, or only the last one: where an epoch takes a fraction of a
            second, bringing a checkpoint to the disk takes as long.

    Raises:
        ValueError: If ``every_minutes`` is below 0.
    """

    def __init__(self, folder: Path, *, every_minutes: float, every_epoch: bool = True) -> None:
        if every_minutes < 0:
            raise ValueError(f"every_minutes must be at least 0, got {every_minutes}")
        self.folder = folder
        self.every_seconds = 60 * every_minutes
        self.every_epoch = every_epoch
        self._best: float | None = None
        self._saved_at = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.install()
        signals.deferred = True
        # Lightning does it where it makes the loader, which ``estimated_stepping_batches`` has it do before it has read
        # the checkpoint.
        trainer.fit_loop._load_combined_loader_states()
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._is_due() and _can_resume_here(trainer):
            self._save(trainer, pl_module)
            signals.stop_if_requested()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.install()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        evaluation = pl_module.evaluations["val"]
        if not math.isfinite(evaluation.loss):
            log.warning("val/loss is %s after step %d: never the best", evaluation.loss, trainer.global_step)
        elif self._best is None or evaluation.acc > self._best:
            self._best = evaluation.acc
            trainer.save_checkpoint(self.folder / "best.ckpt")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.every_epoch or self._is_due() or _is_last_epoch(trainer):
            self._save(trainer, pl_module)
            signals.stop_if_requested()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.deferred = False
        signals.stop_if_requested()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        signals.deferred = False

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.install()

    def _is_due(self) -> bool:
        return signals.requested is not None or time.monotonic() - self._saved_at >= self.every_seconds

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        pl_module.check_finite()
        try:
            for logger in trainer.loggers:
                logger.save()  # a resumed run begins its curves where this checkpoint ends them
        except OSError as error:
            raise RunError(f"the curves cannot be written: {one_line(error)}") from error
        trainer.save_checkpoint(self.folder / "last.ckpt")
        self._saved_at = time.monotonic()


def _is_last_epoch(trainer: L.Trainer) -> bool:
    """Whether training is over with the epoch that ends here."""
    epochs_are_done = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
    steps_are_done = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return trainer.should_stop or epochs_are_done or steps_are_done


def _can_resume_here(trainer: L.Trainer) -> bool:
    """Whether Lightning would go on from the end of this training step just as if nothing had happened."""
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return not (loop._should_accumulate() or loop._is_training_done or loop._should_check_val_fx(fetcher))


@contextmanager
def all_saved(trainer: L.Trainer) -> Iterator[None]:
    """Have the last checkpoint on the disk at the end, however that comes; signals wait for that too.

    Raises:
        RunError: If it could not be brought there; only logged where something else has been raised.
    """
    try:
        yield
    except BaseException:
        try:
            _wait(trainer)
        except Exception as error:
            log.warning("%s", one_line(error))
        raise
    _wait(trainer)
    signals.stop_if_requested()


def _wait(trainer: L.Trainer) -> None:
    checkpoint_io = trainer.strategy.checkpoint_io
    assert isinstance(checkpoint_io, DurableIO)
    signals.deferred = True
    try:
        checkpoint_io.wait()
    finally:
        signals.deferred = False
