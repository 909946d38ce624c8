"""How Lightning writes and reads checkpoints: never a broken network, whole files, and no waiting where a GPU would."""

import copy
import io
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from cifar_lightning.checkpoint import read
from cifar_lightning.config import RunError, argument
from cifar_lightning.saving import write_durably


class DurableIO(CheckpointIO):
    """Writes checkpoints durably, and reads them through the gate of ``checkpoint.read``.

    One of a network on a GPU is copied there and written by a thread: collecting its bytes and waiting for the disk
    takes as long as six steps of a speedrun. One is written at a time; ``wait`` is for the last.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            RunError: If a weight is not finite, or the file cannot be written, this one or the one before.
        """
        self.wait()
        if _is_on_gpu(checkpoint):
            copied = copy.deepcopy(checkpoint)
            self._writing = self._thread.submit(_write_beside, copied, Path(path), _event())
        else:
            _write(checkpoint, Path(path))

    def wait(self) -> None:
        """Wait until what was saved is on the disk.

        Raises:
            RunError: If it could not be brought there.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


@contextmanager
def all_saved(trainer: L.Trainer) -> Iterator[None]:
    """Have the last checkpoint on the disk at the end, however that comes.

    Raises:
        RunError: If it could not be brought there.
    """
    checkpoint_io = trainer.strategy.checkpoint_io
    assert isinstance(checkpoint_io, DurableIO)
    try:
        yield
    finally:
        checkpoint_io.wait()


def _is_on_gpu(checkpoint: dict[str, Any]) -> bool:
    return any(value.is_cuda for value in checkpoint["state_dict"].values())


def _event() -> torch.cuda.Event | None:
    """What the GPU has been given to do so far."""
    return torch.cuda.current_stream().record_event() if torch.cuda.is_available() else None


def _write_beside(checkpoint: dict[str, Any], path: Path, copied: torch.cuda.Event | None) -> None:
    """``_write`` with a GPU that goes on meanwhile, from the moment that the checkpoint has been copied."""
    beside: AbstractContextManager[Any] = nullcontext()
    if copied is not None:
        stream = torch.cuda.Stream()
        stream.wait_event(copied)
        beside = torch.cuda.stream(stream)
    with beside:
        _write(checkpoint, path)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    if (name := _first_not_finite(checkpoint["state_dict"])) is not None:
        raise RunError(
            f"after step {checkpoint['global_step']} {name} holds numbers that are not finite; nothing was saved, "
            "the last checkpoint is of before. A lower optimizer.lr usually helps"
        )
    buffer = io.BytesIO()  # in memory first: so its size is known, and a full disk is one kind of error
    torch.save(checkpoint, buffer)
    try:
        write_durably(path, buffer.getbuffer())
    except RunError as error:
        raise RunError(f"{error}; then go on with {argument('resume', path.parent.parent)}") from error


def _first_not_finite(weights: dict[str, Tensor]) -> str | None:
    """The name of the first tensor with a number that is not finite, if there is one; waits for the device once."""
    floats = {name: value for name, value in weights.items() if value.is_floating_point()}
    are_finite = torch.stack([value.isfinite().all() for value in floats.values()]).tolist()
    return next((name for name, is_finite in zip(floats, are_finite, strict=True) if not is_finite), None)
