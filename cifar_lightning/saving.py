"""Saving: what is on disk under a file's name is whole at every moment; and when a run saves itself."""

import contextlib
import errno
import logging
import math
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.config import RunError, one_line
from cifar_lightning.stopping import signals

log = logging.getLogger(__name__)

_TEMPORARY = ".tmp"


def write_durably(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that its name stands for the old content or the new one, whole, whatever happens meanwhile.

    Written beside its place (another folder may be on another device, where moving is copying), brought to the disk,
    then renamed.

    Raises:
        RunError: If it cannot be written; the file is then what it was.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_TEMPORARY, dir=path.parent)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)  # mkstemp's are for the owner alone
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise RunError(_cannot_write(path, len(content), error)) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _umask()
"""Read once: to read it is to change it for a moment, for all threads."""


def _sync_folder(folder: Path) -> None:
    """Bring a renaming to the disk, where the system has such a call for folders."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL, errno.ENOTSUP):
            raise


def _cannot_write(path: Path, num_bytes: int, error: OSError) -> str:
    kept = "; the one before it is whole" if path.exists() else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(path.parent).free
        return (
            f"{path} cannot be written: {os.strerror(error.errno)}; it needs {num_bytes:,} bytes, {free:,} are free"
            f"{kept}. Make room first"
        )
    return f"{path} cannot be written: {one_line(error)}{kept}"


def sweep_temporary(folder: Path) -> None:
    """Remove what interrupted saves have left in a folder that no one else writes into."""
    for stale in folder.glob(f".*{_TEMPORARY}"):
        stale.unlink(missing_ok=True)


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
