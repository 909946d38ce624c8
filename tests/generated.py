"""Folders of runs as train.py leaves them, without training."""

import json
from pathlib import Path
from typing import Any

from cifar_lightning.runs.failure import FAILED
from cifar_lightning.runs.folder import CONFIG, LOCK, METRICS, OVERRIDES


def finished(
    folder: Path, *overrides: str, seed: int = 0, test: float = 0.5, val: float | None = None, **more: Any
) -> Path:
    """A run that has ended, with its accuracies."""
    started(folder, *overrides, f"seed={seed}")
    accuracies = {"test/acc": test, **({} if val is None else {"val/acc": val})}
    record = {"name": "tutorial", "seed": seed, "steps": 2, "train_seconds": 10.0 + seed, **accuracies}
    record |= {"commit": None, **more}
    (folder / METRICS).write_text(json.dumps({"overrides": [*overrides, f"seed={seed}"], **record}))
    return folder


def started(folder: Path, *overrides: str) -> Path:
    """A run that was started."""
    (folder / CONFIG.parent).mkdir(parents=True)
    (folder / LOCK).touch()
    (folder / CONFIG).write_text("name: tutorial\n")
    (folder / OVERRIDES).write_text(json.dumps(overrides))
    return folder


def failed(folder: Path, *overrides: str, reason: str = "too bad") -> Path:
    """A run that has failed, as a job with a bad config does."""
    (folder / FAILED.parent).mkdir(parents=True)
    (folder / FAILED).write_text(json.dumps({"overrides": overrides, "error": reason}))
    return folder
