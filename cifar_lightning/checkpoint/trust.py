"""The gate for files that anyone may have made: what they are is known before anything in them is used."""

import pickle
import stat
from pathlib import Path
from typing import Any

import torch

from cifar_lightning.errors import UserError
from cifar_lightning.files import check_torch_archive

MAX_PICKLE_BYTES = 3_000_000
"""More than the names and plain values of a checkpoint take: some 100 kB, and with ``MAX_NAME_BYTES`` of names of
classes 2 MB. Reading a megabyte made to be slow takes 2 seconds."""

MAX_SETTINGS_BYTES = MAX_PICKLE_BYTES - 500_000
"""Most bytes of the settings of a run, so that the rest of its checkpoint has room."""

MAX_TEXT_BYTES = 1_000_000
"""More than any record of a run takes."""

MAX_VALUES, MAX_DEPTH = 100_000, 50
"""More values, and deeper ones, than any checkpoint of this project has."""


def check_file(path: Path) -> None:
    """Refuse what is no regular file with something in it.

    Raises:
        UserError: With the reason.
        OSError: If the file cannot be read.
    """
    if path.is_dir():
        inside = sorted(str(found) for found in path.rglob("*.ckpt"))[:5]
        raise UserError(f"{path} is a folder{'; it holds ' + ', '.join(inside) if inside else ' without checkpoints'}")
    if not path.is_file():
        near = sorted(found.name for found in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        raise UserError(f"there is no file {path}{'; beside it: ' + ', '.join(near) if near else ''}")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes): was a copy interrupted?")


def check_archive(path: Path) -> None:
    """Refuse what is no whole file as torch.save writes them.

    Raises:
        UserError: With the reason.
        OSError, zipfile.BadZipFile, ...: If the file cannot be read, or is damaged.
    """
    check_file(path)
    check_torch_archive(path, kind="a checkpoint of this project", max_pickle_bytes=MAX_PICKLE_BYTES)


def refuse_too_long(settings: dict[str, Any]) -> None:
    """Raise ValueError where a checkpoint with these settings would be refused for its length or depth."""
    _refuse_values(settings)
    if (num_bytes := len(pickle.dumps(settings, protocol=2))) > MAX_SETTINGS_BYTES:
        raise ValueError(f"the settings take {num_bytes:,} bytes, and {MAX_SETTINGS_BYTES:,} are allowed")


def check_values(path: Path, value: Any) -> None:
    """Refuse a loaded file that holds more, or something else, than plain values and whole dense tensors.

    A tensor can claim more numbers than its file holds, and lists can hold one another many times over; both cost
    next to nothing to store. So counting stops where there is too much.

    Raises:
        UserError: With what was found.
    """
    try:
        _refuse_values(value)
    except ValueError as error:
        raise UserError(f"{path} is not a checkpoint of this project: {error}") from error


def _refuse_values(value: Any) -> None:
    num_values, pending = 0, [(value, "", 0)]
    while pending:
        value, key, depth = pending.pop()
        num_values += 1
        if num_values + len(pending) > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError(f"it holds more than {MAX_VALUES:,} values, or more than {MAX_DEPTH} levels")
        if isinstance(value, dict):
            if not all(isinstance(name, str | int) for name in value):
                raise ValueError(f"{key} has keys that are neither names nor numbers")
            pending += [(part, f"{key}.{name}".lstrip("."), depth + 1) for name, part in value.items()]
        elif isinstance(value, list | tuple):
            pending += [(part, f"{key}.{i}", depth + 1) for i, part in enumerate(value)]
        elif isinstance(value, torch.Tensor):
            if type(value) is not torch.Tensor or not _is_whole(value):
                raise ValueError(f"{key} is no dense tensor that the file holds all numbers of")
        elif not isinstance(value, str | int | float | None):
            raise ValueError(f"{key} is a {type(value).__name__}")


def _is_whole(tensor: torch.Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return False
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def read_text(path: Path) -> str:
    """A small text file.

    Raises:
        OSError: If it is none, or cannot be read.
        ValueError: If it is too large, or no text.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would have us wait for ever
        raise OSError(f"{path} is no regular file")
    if status.st_size > MAX_TEXT_BYTES:
        raise ValueError(f"{path} is larger than {MAX_TEXT_BYTES:,} bytes")
    return path.read_text(encoding="utf-8")
