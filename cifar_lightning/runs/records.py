"""metrics.json and what it holds."""

import json
import math
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig

from cifar_lightning import STARTED
from cifar_lightning.callbacks.curves import TrainingCurves
from cifar_lightning.checkpoint.trust import read_text
from cifar_lightning.checkpoint.write import write_durably
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.cli.main import is_sweep
from cifar_lightning.data import ImageDataModule
from cifar_lightning.device import device_name
from cifar_lightning.runs.folder import METRICS

_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "tensorboard")


def provenance() -> dict[str, Any]:
    """Overrides, versions and commit that a result was made with."""
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    versions = {"python": python_version(), **{name: version(name) for name in _PACKAGES}}
    return {"overrides": overrides, "versions": versions, **_commit()}


def _commit() -> dict[str, Any]:
    """Commit of the code, and whether files differ from it; null where the code is in no git checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def write_metrics(folder: Path, metrics: dict[str, Any]) -> Path:
    """Write metrics.json into a folder, with null for what is not finite, as JSON has it; returns its path."""
    path = folder / "metrics.json"
    write_durably(path, (json.dumps(_finite(metrics), indent=2, allow_nan=False) + "\n").encode())
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finished_metrics(folder: Path) -> dict[str, Any] | None:
    """The metrics of a run that has ended in a folder; None where it has not."""
    try:
        metrics = json.loads(read_text(folder / METRICS))
    except (OSError, ValueError, RecursionError):
        return None
    return metrics if isinstance(metrics, dict) else None


def final_metrics(
    config: dict[str, Any],
    data: ImageDataModule,
    classifier: ImageClassifier,
    trainer: L.Trainer,
    curves: TrainingCurves,
) -> dict[str, Any]:
    """What metrics.json holds, but for the clocks: figures of the last epoch and of each split, and provenance."""
    metrics: dict[str, Any] = {name: value for name, value in curves.epoch.items() if name != "images_per_second"}
    for split, evaluation in classifier.evaluations.items():
        metrics |= classifier.scalars(split)
        metrics[f"num_{split}_images"] = evaluation.num_images
    if "val" in classifier.evaluations:
        metrics["seconds_to_val_acc"] = {f"{acc:.2f}": seconds for acc, seconds in curves.seconds_to.items()}
    return metrics | {
        "name": config["name"],
        "data": data.name,
        "data_note": data.note,
        "seed": config["seed"],
        "epochs": _epochs(trainer),
        "steps": trainer.global_step,
        "train_seconds": curves.seconds,
        "images_per_second": curves.num_images / curves.seconds,
        "device": device_name(trainer.strategy.root_device),
        "precision": str(trainer.precision),
        "output_dir": config["output_dir"],
        **provenance(),
    }


def _epochs(trainer: L.Trainer) -> int:
    """Epochs that have ended; ``current_epoch`` lags behind where there was nothing left to train after resuming."""
    return trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]


def clocks(
    curves: TrainingCurves, classifier: ImageClassifier, *, started: float, set_from_data: float
) -> dict[str, float | None]:
    """Seconds as the speedruns count them and as a user feels them.

    Args:
        curves: Which saw the first step.
        classifier: Which has been tested; the first clock is None where it has not.
        started: What ``time.perf_counter`` said when ``train`` was called.
        set_from_data: Seconds of setting the network from data.
    """
    now, known_at = time.perf_counter(), classifier.known_at.get("test")
    return {
        "warm_seconds": None if known_at is None else set_from_data + known_at - curves.began_at,
        "seconds": now - started,
        "process_seconds": None if is_sweep() else now - STARTED,  # the jobs of a sweep share a process
    }
