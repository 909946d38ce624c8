"""The answer to a question about a checkpoint: where it is kept. Another question has another folder."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_lightning.checkpoint.trust import read_text
from cifar_lightning.checkpoint.write import write_durably
from cifar_lightning.config.schema import run_folder
from cifar_lightning.errors import UserError, listed
from cifar_lightning.runs.resume import flattened

QUESTION = "question.json"
"""File beside the numbers of an answer: what was asked, as plain values by dotted key."""

_NOT_ASKED = ("data.batch_size", "data.eval_batch_size", "data.urls", "data.options", "data.note", "data._target_")
"""Keys below ``data`` that change no prediction."""

_LIMITS = ("limit_test_batches", "limit_val_batches", "fast_dev_run", "overfit_batches")
"""Arguments of the Trainer that decide how many images are evaluated. Those of the training run are not taken along."""


def what_is_asked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an evaluation's settings, by dotted key, that decides its answer."""
    return {key: value for key, value in flattened(settings).items() if _matters(key)}


def asked_otherwise(asked: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation asks for that differs from the settings of the checkpoint, by dotted key.

    Args:
        asked: Values by dotted key; those that do not matter for the answer may be among them.
        own: The settings in the checkpoint.
    """
    flat = {"trainer.precision": None, "tta": 0, **flattened(own)}
    return {key: value for key, value in asked.items() if _matters(key) and not _same(key, value, flat.get(key))}


def _matters(key: str) -> bool:
    is_of_data = key == "data" or (key.startswith("data.") and not key.startswith(_NOT_ASKED))
    return is_of_data or key in ("tta", "trainer.precision", *(f"trainer.{name}" for name in _LIMITS))


def _same(key: str, value: Any, own: Any) -> bool:
    if key.removeprefix("trainer.") in _LIMITS:
        return value is None or value is False or (key == "trainer.overfit_batches" and value == 0)
    if key == "trainer.precision":
        return str(value or "32-true") == str(own or "32-true")
    if key == "data.root" and isinstance(value, str) and isinstance(own, str):
        return Path(value).absolute() == Path(own).absolute()
    if key.endswith("_target_"):  # of a class a checkpoint has the name alone
        return str(value).rpartition(".")[2] == own
    return value == own


def evaluation_folder(ckpt: str, split: str, otherwise: Mapping[str, Any]) -> str:
    """Where evaluate.py writes: beside the checkpoints of a run's folder, else into a new folder under logs/.

    Args:
        ckpt: Path of the checkpoint.
        split: The split it is evaluated on.
        otherwise: What is asked for otherwise than in training, see ``asked_otherwise``. Each has its part of the name.
    """
    path = Path(ckpt)
    if path.parent.name != "checkpoints":
        return run_folder("evaluate")
    rest = dict(otherwise)
    parts = [path.stem, *([] if split == "test" else [split])]
    data = [str(rest.pop(key)) for key in ("data", "data.name") if key in rest]
    parts += data[-1:]
    if "tta" in rest:
        parts.append(f"tta{rest.pop('tta')}")
    if "trainer.precision" in rest:
        parts.append(str(rest.pop("trainer.precision") or "32-true"))
    if rest:  # such as another root
        parts.append(hashlib.sha256(json.dumps(rest, sort_keys=True, default=str).encode()).hexdigest()[:8])
    return str(path.parent.parent / "evaluate" / "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts))


def _told(key: str, value: Any) -> str:
    return f"other {key.removeprefix('images.')} images" if key.startswith("images.") else f"{key}={value}"


def ask(folder: Path, question: Mapping[str, Any]) -> None:
    """Note in a folder what is asked there; the same question again may replace its answer.

    Args:
        folder: Of the answer, held by this process.
        question: Plain values by name.

    Raises:
        UserError: If the folder holds the answer to another question.
        RunError: If the note cannot be written.
    """
    path = folder / QUESTION
    question = json.loads(json.dumps(question, default=str))
    if path.exists():
        try:
            before = json.loads(read_text(path))
            keys = sorted(question.keys() | before.keys())
            other = [_told(key, before.get(key)) for key in keys if before.get(key) != question.get(key)]
        except (OSError, ValueError, RecursionError, AttributeError):
            other = [f"{QUESTION} is damaged"]
        if other:
            raise UserError(
                f"output_dir={folder} holds the answer to another question, {listed(other)}: name another folder, so "
                "that neither is lost"
            )
    write_durably(path, (json.dumps(question, indent=2) + "\n").encode())
