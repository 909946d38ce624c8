"""How checkpoints are written: durably, and without holding up a GPU."""

import copy
import io
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.fabric.utilities import move_data_to_device

from cifar_lightning.checkpoint.format import first_not_finite, read
from cifar_lightning.checkpoint.write import write_durably
from cifar_lightning.config.overrides import argument
from cifar_lightning.errors import RunError


class DurableIO(CheckpointIO):
    """Writes checkpoints durably, and reads them through the gate of ``checkpoint.format.read``.

    One of a network on a GPU is copied there and written by a thread: collecting its bytes and waiting for the disk
    takes as long as six steps of a speedrun. One is written at a time; ``wait`` is for the last.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._stream: torch.cuda.Stream | None = None
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            RunError: If a weight is not finite, or the file cannot be written, this one or the one before.
        """
        self.wait()
        copied = _copied(checkpoint) if is_on_gpu(checkpoint) else None
        if copied is None:
            _write(_serialized(checkpoint), Path(path))
        else:
            device = next(iter(checkpoint["state_dict"].values())).device
            self._writing = self._thread.submit(_write_beside, self._beside(device), copied, Path(path))

    def _beside(self, device: torch.device) -> AbstractContextManager[Any]:
        """A place for work beside a GPU's other work, from when all that it has been given so far is done."""
        if device.type != "cuda":
            return nullcontext()
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        return torch.cuda.stream(self._stream)

    def wait(self) -> None:
        """Wait until what was saved is on the disk.

        Raises:
            RunError: If it could not be brought there.
        """
        if self._writing is not None:
            writing = self._writing
            writing.exception()
            self._writing = None
            writing.result()

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def is_on_gpu(checkpoint: dict[str, Any]) -> bool:
    """Whether a weight in a checkpoint is on a CUDA device."""
    return any(value.is_cuda for value in checkpoint["state_dict"].values())


def _copied(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """A copy on the same device; None if there is no room for one."""
    try:
        return copy.deepcopy(checkpoint)
    except torch.OutOfMemoryError:
        return None


def _write_beside(beside: AbstractContextManager[Any], copied: dict[str, Any], path: Path) -> None:
    with beside:
        on_cpu = move_data_to_device(copied, "cpu")  # where looking for numbers that are not finite takes no GPU memory
    copied.clear()  # the GPU's memory is wanted, and disks can be slow
    _write(_serialized(on_cpu), path)


def _serialized(checkpoint: dict[str, Any]) -> io.BytesIO:
    """The bytes of a checkpoint, in memory: so that their number is known, and a full disk is one kind of error."""
    if (name := first_not_finite(checkpoint["state_dict"])) is not None:
        raise RunError(
            f"after step {checkpoint['global_step']} {name} holds numbers that are not finite; nothing was saved, "
            "the last checkpoint is of before. A lower optimizer.lr usually helps"
        )
    content = io.BytesIO()
    torch.save(checkpoint, content)
    return content


def _write(content: io.BytesIO, path: Path) -> None:
    try:
        write_durably(path, content.getbuffer())
    except RunError as error:
        if not path.exists():  # there is nothing yet to resume from
            raise
        raise RunError(f"{error}; then resume with {argument('resume', path.parent.parent)}") from error
