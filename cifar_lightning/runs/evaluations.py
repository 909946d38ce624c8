"""The folder of an evaluation of a checkpoint: one with other settings has another folder."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifar_lightning.checkpoint.trust import read_text
from cifar_lightning.checkpoint.write import write_durably
from cifar_lightning.config.resolve import flattened
from cifar_lightning.config.schema import run_folder
from cifar_lightning.errors import UserError, listed
from cifar_lightning.runs.folder import LAST, METRICS, below, run_of

SETTINGS = "settings.json"
"""File beside the numbers of an evaluation: the settings that decide them, as plain values by dotted key."""

_WITHOUT_EFFECT = (
    *("data.batch_size", "data.eval_batch_size", "data.memory", "data.urls", "data.options", "data.note"),
    "data._target_",
)
"""Keys below ``data`` that change no prediction."""

_LIMITS = ("limit_test_batches", "limit_val_batches", "fast_dev_run", "overfit_batches")
"""Arguments of the Trainer that decide how many images are evaluated. Those of the training run are not taken along."""

_ADDING = {"other_sets": ["auto"], "corruptions": False}
"""Keys that add numbers and change none, with their defaults. A default is not recorded, nor part of a folder's name:
what the other sets found by ``auto`` are is recorded in their place."""

SETS = "sets."
"""What the names of other test sets begin with in ``SETTINGS``."""


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of an evaluation's settings, by dotted key, that decide its numbers."""
    return {
        key: value
        for key, value in flattened(settings).items()
        if _decides(key) and not (key in _ADDING and _same(key, value, _ADDING[key]))
    }


def changed(settings: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an evaluation that decide its numbers and differ from those of the checkpoint, by dotted key.

    Args:
        settings: Values by dotted key; others may be among them.
        own: The settings in the checkpoint.
    """
    flat = {"trainer.precision": None, "tta": 0, **flattened(own), **_ADDING}
    return {key: value for key, value in settings.items() if _decides(key) and not _same(key, value, flat.get(key))}


def _decides(key: str) -> bool:
    is_of_data = key == "data" or (key.startswith("data.") and not key.startswith(_WITHOUT_EFFECT))
    return is_of_data or key in ("tta", "trainer.precision", *_ADDING, *(f"trainer.{name}" for name in _LIMITS))


def _same(key: str, value: Any, own: Any) -> bool:
    if key.removeprefix("trainer.") in _LIMITS:
        return value is None or value is False or (key == "trainer.overfit_batches" and value == 0)
    if key == "trainer.precision":
        return str(value or "32-true") == str(own or "32-true")
    if key == "data.root" and isinstance(value, str) and isinstance(own, str):
        return Path(value).absolute() == Path(own).absolute()
    if key == "other_sets":
        return _listed(value) == _listed(own)
    if key.endswith("_target_"):  # of a class a checkpoint has the name alone
        return str(value).rpartition(".")[2] == own
    return value == own


def _listed(names: Any) -> list[str]:
    """The names of other sets, of which a single one may be typed without brackets."""
    return [] if names is None else [str(name) for name in (names if isinstance(names, list | tuple) else [names])]


def evaluation_folder(ckpt: str, split: str, changes: Mapping[str, Any]) -> str:
    """Where evaluate.py writes: beside the checkpoints of a run's folder, else into a new folder under logs/.

    Args:
        ckpt: Path of the checkpoint.
        split: The split it is evaluated on.
        changes: As ``changed`` gives them. Each has its part of the name.
    """
    path, run = Path(ckpt), run_of(ckpt)
    if run is None:
        return run_folder("evaluate")
    rest = dict(changes)
    parts = [path.stem if path.suffix == LAST.suffix else path.name, *([] if split == "test" else [split])]
    data = [str(rest.pop(key)) for key in ("data", "data.name") if key in rest]
    parts += data[-1:]
    if "tta" in rest:
        parts.append(f"tta{rest.pop('tta')}")
    if "trainer.precision" in rest:
        parts.append(str(rest.pop("trainer.precision") or "32-true"))
    if rest.pop("corruptions", False):
        parts.append("corruptions")
    if "other_sets" in rest:
        rest["other_sets"] = _listed(rest["other_sets"])
    if rest:  # such as another root
        parts.append(hashlib.sha256(json.dumps(rest, sort_keys=True, default=str).encode()).hexdigest()[:8])
    return below(run, "evaluate", "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts))


def record_settings(folder: Path, settings: Mapping[str, Any], *, result: str = METRICS) -> None:
    """Write into a folder with which settings a checkpoint is evaluated there. The same ones may be evaluated again.

    Other test sets may be more than before, as when one has been downloaded meanwhile, but not fewer or others.

    Args:
        folder: Of the evaluation, held by this process.
        settings: Plain values by name; those called ``images.<split>`` and ``sets.<name>`` are fingerprints.
        result: Name of the file that has the results.

    Raises:
        UserError: If the folder holds the numbers of an evaluation with other settings.
        RunError: If the file cannot be written.
    """
    path = folder / SETTINGS
    settings = json.loads(json.dumps(settings, default=str))
    if path.exists() and (folder / result).exists():
        try:
            before = json.loads(read_text(path))
            keys = sorted(settings.keys() | before.keys())
            other = [
                _in_words(key, before.get(key))
                for key in keys
                if before.get(key) != settings.get(key) and not (key.startswith(SETS) and key not in before)
            ]
        except (OSError, ValueError, RecursionError, AttributeError):
            other = [f"{SETTINGS} is damaged"]
        if other:
            raise UserError(
                f"output_dir={folder} holds results with other settings, {listed(other)}: name another folder, "
                "so that neither is lost"
            )
    write_durably(path, (json.dumps(settings, indent=2) + "\n").encode())


def _in_words(key: str, value: Any) -> str:
    if key.startswith(SETS):
        return f"{key.removeprefix(SETS)} as it was"
    return f"other {key.removeprefix('images.')} images" if key.startswith("images.") else f"{key}={value}"
