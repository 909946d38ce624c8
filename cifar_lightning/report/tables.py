"""Tables: what a run says on the console, and predictions.csv."""

import csv
import logging
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import lightning as L
from jaxtyping import Int64
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.config.overrides import argument
from cifar_lightning.config.resolve import Section, Settings
from cifar_lightning.data import ImageDataModule
from cifar_lightning.device import device_name
from cifar_lightning.metrics import Evaluation

log = logging.getLogger(__name__)


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


def announce(
    settings: Settings, data: ImageDataModule, classifier: ImageClassifier, trainer: L.Trainer, flops: int
) -> None:
    """Say, before training, what is about to be trained, on what and where."""
    sizes = ", ".join(f"{len(index):,} {split}" for split, index in data.index.items() if len(index))
    shape = "x".join(str(size) for size in data.image_shape)
    note = f" ({data.note})" if data.note else ""
    log.info("data      %s%s: %s images of %s, %d classes", data.name, note, sizes, shape, len(data.classes))
    num_parameters = sum(parameter.numel() for parameter in classifier.net.parameters())
    size = f"{num_parameters:,} parameters, {flops / 1e6:,.1f} MFLOP an image"
    log.info("model     %s: %s", settings.model["name"], size)
    recipe = [_choice(settings.optimizer), f"lr {settings.optimizer['lr']:g}", _choice(settings.schedule or {})]
    log.info("recipe    %s, batch %d", " ".join(recipe), data.batch_size)
    device = trainer.strategy.root_device
    log.info("device    %s: %s, precision %s", device.type, device_name(device), trainer.precision)
    log.info("folder    %s", relative(Path(settings.output_dir)))


def _choice(section: Section) -> str:
    return section.get("_target_", "constant").rpartition(".")[2]


def final_table(metrics: dict[str, Any], path: Path) -> None:
    """Print the table at the end of training, and where to look next.

    Args:
        metrics: What metrics.json holds.
        path: Where it is.
    """
    names = [name for name in metrics if "/" in name]
    rows = {name: shown(name, metrics[name]) for name in names}
    for acc, seconds in metrics.get("seconds_to_val_acc", {}).items():
        if seconds is not None:
            rows[f"to val/acc {shown('acc', float(acc))}"] = f"{seconds:.1f} s"
    rows["training"] = f"{metrics['train_seconds']:.1f} s, {metrics['images_per_second']:,.0f} images/s"
    note = f" ({metrics['data_note']})" if metrics["data_note"] else ""
    log_table(f"{metrics['name']} on {metrics['data']}{note}, seed {metrics['seed']}", rows)
    last = relative(path.parent / "checkpoints" / "last.ckpt")
    log.info("numbers   %s", relative(path))
    if last.exists():
        log.info("evaluate  python evaluate.py %s", argument("ckpt", last))
    log.info("watch     tensorboard --logdir logs")


def write_predictions(path: Path, evaluation: Evaluation, targets: Int64[Tensor, " n"], classes: Sequence[str]) -> None:
    """Write one line per image as CSV: index, target and prediction by name, confidence, and 1 where they agree."""
    rows = zip(targets.tolist(), evaluation.preds.tolist(), evaluation.confidence.tolist(), strict=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "target", "pred", "confidence", "correct"])
        for index, (target, pred, confidence) in enumerate(rows):
            writer.writerow([index, classes[target], classes[pred], f"{confidence:.6f}", int(target == pred)])
