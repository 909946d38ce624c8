"""metrics.json: written, read again, and with what it takes to reproduce a result."""

import json
import math
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from cifar_lightning.checkpoint.format import versions
from cifar_lightning.checkpoint.trust import read_text
from cifar_lightning.checkpoint.write import write_durably
from cifar_lightning.config.invocation import Invocation
from cifar_lightning.errors import printable, shortened
from cifar_lightning.runs.folder import METRICS
from cifar_lightning.typehints import fits

_PACKAGES = ("torchmetrics", "hydra-core", "tensorboard")


def provenance(invocation: Invocation) -> dict[str, Any]:
    """Overrides, versions and commit that a result was made with."""
    return {
        "overrides": list(invocation.overrides),
        "versions": {"python": python_version(), **versions(), **{name: version(name) for name in _PACKAGES}},
        **commit_of(Path(__file__).resolve().parents[2]),
    }


def commit_of(root: Path) -> dict[str, Any]:
    """Commit of the code in a folder, and whether files differ from it; null where the folder is no git checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True)
        return done.stdout.decode("utf-8", "replace").strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def write_metrics(folder: Path, metrics: dict[str, Any]) -> Path:
    """Write metrics.json into a folder, with null for what is not finite, as JSON has it; returns its path."""
    path = folder / METRICS
    write_durably(path, (json.dumps(_finite(metrics), indent=2, allow_nan=False) + "\n").encode())
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finished_metrics(folder: Path) -> dict[str, Any] | None:
    """The metrics of a run that has ended in a folder; None where it has not."""
    try:
        return read_metrics(folder / METRICS)
    except (OSError, ValueError):
        return None


def read_metrics(path: Path) -> dict[str, Any]:
    """What a metrics.json holds, which may come from anyone.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is none; says why.
    """
    try:
        metrics = json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(metrics, dict):
        raise ValueError("it holds no metrics by name")
    for name, value in metrics.items():
        if not _is_metric(name, value):
            raise ValueError(f"{shortened(printable(name), 60)} is no number")
    return metrics


def _is_metric(name: str, value: Any) -> bool:
    """Whether a value may stand in metrics.json: what is called ``<split>/<metric>`` is a number or null.

    An evaluation has several in one, the accuracy of each class.
    """
    numbers = value.values() if isinstance(value, dict) and name.endswith("/class_acc") else [value]
    return "/" not in name or all(
        number is None or (fits(number, float) and abs(number) <= sys.float_info.max) for number in numbers
    )
