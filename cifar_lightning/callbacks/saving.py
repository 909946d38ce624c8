"""When a run saves itself, and what it saves beside Lightning's own."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from cifar_lightning import ranks
from cifar_lightning.callbacks.finite import check_finite
from cifar_lightning.checkpoint.durable_io import DurableIO
from cifar_lightning.checkpoint.format import restoring
from cifar_lightning.checkpoint.random_states import random_states, set_random_states
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.errors import one_line
from cifar_lightning.patches import can_resume_here, restore_loader_state
from cifar_lightning.runs.signals import Stopped, signals

log = logging.getLogger(__name__)


class RunCheckpoints(Checkpoint):
    """Keeps ``last.ckpt``, from which the run can be resumed, and with a validation split ``best.ckpt`` by ``val/acc``.

    ``last.ckpt`` is written at the end of each epoch, or of the last one, every few minutes within one, and when a
    signal asks the run to stop. A run resumes from it bit for bit: where gradients are accumulated, a validation is due
    or the epoch is over, saving waits for the next step or the epoch's end. Where the last validation comes after
    training, the file is written once more, with the temperature that it gives.

    Lightning's checkpoint says nothing of random generators, of sums over steps that are not logged yet, or of a wish
    to stop. They are saved as ``progress``, and restored last, since other callbacks may draw random numbers.

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
        self._talks = ranks.Talks(min(ranks.SECONDS_BETWEEN_TALKS, self.every_seconds))
        self._progress: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._best = state_dict["best"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        assert isinstance(pl_module, ImageClassifier)
        own = {"train_metrics": pl_module.train_metrics.state_dict(), "random_states": random_states(pl_module.device)}
        checkpoint["progress"] = {"should_stop": trainer.should_stop, **own}
        if ranks.world_size() > 1:
            checkpoint["progress"]["other_ranks"] = ranks.gathered(move_data_to_device(own, "cpu"))[1:]

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._progress = checkpoint["progress"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        signals.install()
        signals.deferred = True
        if self._progress is not None:
            with restoring(self.folder / "last.ckpt"):
                restore_loader_state(trainer)
                trainer.should_stop = self._progress["should_stop"]  # which fit() has set to False
                self._restore(self._progress, pl_module)
            self._progress = None
        self._saved_at = time.monotonic()

    def _restore(self, progress: dict[str, Any], classifier: ImageClassifier) -> None:
        """Restore what this rank was at. Of another number of ranks, the first takes the sums of all."""
        states = [progress, *progress.get("other_ranks", [])]
        rank, metrics = ranks.rank(), classifier.train_metrics
        if len(states) == ranks.world_size():
            metrics.load_state_dict(states[rank]["train_metrics"], classifier.device)
        elif rank == 0:
            metrics.add_state_dicts([state["train_metrics"] for state in states], classifier.device)
        if rank < len(states):
            set_random_states(states[rank]["random_states"], classifier.device)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        several = ranks.world_size() > 1
        if not (self._talks.is_due() if several else self._is_due()) or not can_resume_here(trainer):
            return
        own = signals.requested or 0, self._is_due()
        requested, due = self._talks.largest(own) if several else own
        if due:
            self._save(trainer, pl_module)
            _stop(requested)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.install()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._add_temperature(trainer, pl_module)
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        evaluation = pl_module.evaluations["val"]
        if not math.isfinite(evaluation.loss):
            log.warning("val/loss is %s after step %d: never the best", evaluation.loss, trainer.global_step)
        elif self._best is None or evaluation.acc > self._best:
            self._best = evaluation.acc
            trainer.save_checkpoint(self.folder / "best.ckpt")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        requested, due = ranks.largest([signals.requested or 0, self._is_due()])
        if self.every_epoch or due or _is_last_epoch(trainer):
            self._save(trainer, pl_module)
            _stop(requested)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        [requested] = ranks.largest([signals.requested or 0])
        signals.deferred = False
        _stop(requested)
        signals.stop_if_requested()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        signals.deferred = False

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.install()

    def _is_due(self) -> bool:
        return signals.requested is not None or time.monotonic() - self._saved_at >= self.every_seconds

    def _save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        check_finite(trainer, pl_module)
        for logger in trainer.loggers:
            logger.save()  # a resumed run begins its curves where this checkpoint ends them
        trainer.save_checkpoint(self.folder / "last.ckpt")
        self._saved_at = time.monotonic()

    def _add_temperature(self, trainer: L.Trainer, classifier: ImageClassifier) -> None:
        """Write the temperature of a validation that came after training into last.ckpt, and change nothing else."""
        path, checkpoint_io = self.folder / "last.ckpt", _checkpoint_io(trainer)
        checkpoint_io.wait()
        if not path.exists():
            return
        checkpoint = checkpoint_io.load_checkpoint(path)
        is_new = checkpoint.get("temperature") != classifier.temperature
        if is_new and checkpoint.get("global_step") == trainer.global_step:
            checkpoint_io.save_checkpoint(checkpoint | {"temperature": classifier.temperature}, path)


def _checkpoint_io(trainer: L.Trainer) -> DurableIO:
    checkpoint_io = trainer.strategy.checkpoint_io
    assert isinstance(checkpoint_io, DurableIO)
    return checkpoint_io


def _stop(requested: float) -> None:
    """Raise ``Stopped`` if a rank has got that signal."""
    if requested:
        raise Stopped(int(requested))


def _is_last_epoch(trainer: L.Trainer) -> bool:
    """Whether training is over with the epoch that ends here."""
    epochs_are_done = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs
    steps_are_done = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    return trainer.should_stop or epochs_are_done or steps_are_done


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
    signals.deferred = True
    try:
        _checkpoint_io(trainer).wait()
    finally:
        signals.deferred = False
