"""What a run leaves beside its checkpoints: metrics.json, and a table on the console."""

import json
import logging
import math
import subprocess
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from platform import python_version
from typing import Any

from hydra.core.hydra_config import HydraConfig
from rich.console import Console
from rich.table import Table

from cifar_lightning.saving import write_durably

log = logging.getLogger(__name__)

_PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "tensorboard")


def provenance() -> dict[str, Any]:
    """Overrides, versions and commit that a result was made with."""
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    versions = {"python": python_version(), **{name: version(name) for name in _PACKAGES}}
    return {"overrides": overrides, "versions": versions, **_commit()}


def _commit() -> dict[str, Any]:
    """Commit of the code, and whether files differ from it; null where the code is in no git checkout."""
    root = Path(__file__).resolve().parent.parent

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


def log_table(title: str, rows: dict[str, str]) -> None:
    """Write a table of names and values to console and log file."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, value)
    text = StringIO()
    Console(file=text, width=100).print(table)
    log.info("%s\n%s", title, text.getvalue().rstrip())


def relative(path: Path) -> Path:
    """A path as short as it can be given from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def shown(name: str, value: float) -> str:
    """A metric as people read it: accuracies in percent."""
    if name.removesuffix("_tta").endswith("acc"):
        return f"{100 * value:.2f} %"
    return f"{value:,.0f}" if name == "images_per_second" else f"{value:.4f}"
