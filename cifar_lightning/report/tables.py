"""Tables: what a run says on the console."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.box import SQUARE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cifar_lightning.config.resolve import Section, Settings
from cifar_lightning.device import device_name
from cifar_lightning.errors import counted, printable, shortened

if TYPE_CHECKING:
    import lightning as L

    from cifar_lightning.classifier import ImageClassifier
    from cifar_lightning.data import ImageDataModule

log = logging.getLogger(__name__)


_MAX_CLASS_ROWS = 20
"""Most rows of a table for classes; of more classes the best and the worst are shown."""

_MAX_NAME = 60
"""Most characters of a name in a table."""

_UNKNOWN = "–"
"""Stands for a number that cannot be known, as of too few images."""


Justify = Literal["left", "right"]


def log_table(
    title: str,
    rows: Iterable[Sequence[str]],
    *,
    columns: Mapping[str, Justify] | None = None,
    whole: Collection[str] = (),
    values: Justify = "right",
) -> None:
    """Write a table to console and log file.

    Args:
        title: Stands above it.
        rows: The texts of each row.
        columns: Headings, and to which side a column's texts stand; None for names and values without headings.
        whole: Headings of columns that are cut last where the table is too wide.
        values: To which side values without headings stand.
    """
    table = Table(show_header=columns is not None, box=SQUARE)
    for heading, side in (columns or {"name": "left", "value": values}).items():
        table.add_column(heading, justify=side, no_wrap=heading in whole)
    for row in rows:  # as Text, in which no [brackets] are markup and no :words: are emoji
        table.add_row(*(Text(shortened(printable(value), _MAX_NAME)) for value in row))
    text = StringIO()
    # Said in full: by itself rich writes colours where FORCE_COLOR is set, and in a notebook past the file.
    console = Console(file=text, width=100, color_system=None, force_terminal=False, force_jupyter=False)
    console.print(table)
    log.info(f"{printable(title)}\n{text.getvalue().rstrip()}")


def log_values(title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    """Write a table of names and values that end at one place, each with what stands behind it, such as its interval.

    Args:
        title: Stands above it.
        rows: A name, its value, and what stands behind the value; an empty text for nothing.
    """
    width = max((len(value) for _, value, _ in rows), default=0)
    log_table(title, [(name, f"{value:>{width}} {behind}".rstrip()) for name, value, behind in rows], values="left")


def class_rows(class_acc: Mapping[str, float]) -> list[tuple[str, str]]:
    """Rows of the accuracy of each class; of many classes those of the best and the worst.

    Args:
        class_acc: Accuracy by class, in [0, 1]; nan for a class without images.
    """
    rows = [(name, shown("acc", acc)) for name, acc in class_acc.items()]
    if len(rows) <= _MAX_CLASS_ROWS:
        return rows
    half = _MAX_CLASS_ROWS // 2
    ranked = sorted((acc, i) for i, acc in enumerate(class_acc.values()) if not math.isnan(acc))
    worst, best = [i for _, i in ranked[:half]], [i for _, i in ranked[half:][-half:]]
    between = (counted(len(rows) - len(worst) - len(best), "more class", "more classes"), "in metrics.json")
    return [*(rows[i] for i in reversed(best)), between, *(rows[i] for i in reversed(worst))]


def log_drops(other_sets: Sequence[Mapping[str, Any]], split: str) -> None:
    """Write the table of other test sets to console and log file, and below it what a reader must know of them.

    Args:
        other_sets: The rows in metrics.json; see ``engine.drops.Row``.
        split: Name of the split that they are compared with.
    """
    columns: dict[str, Justify] = {"test set": "left", "images": "right", "accuracy": "right"}
    columns |= {"drop": "right", "95 % interval": "right", "p": "right", "loss": "right"}
    rows = [
        (
            row["name"],
            f"{row['num_images']:,}",
            shown("acc", row["acc"]),
            _points(row["drop"]),
            f"{_points(row['drop_low'])} to {_points(row['drop_high'])}" if _is_known(row["drop_low"]) else _UNKNOWN,
            "" if row["p"] is None else _shown_p(row["p"]),
            shown("loss", row["loss"]),
        )
        for row in other_sets
    ]
    log_table(f"Other test sets: the drop is from the accuracy on the {split} images, in points", rows, columns=columns)
    for name, note in notes_of(other_sets):
        log.info("note      %s: %s", printable(name), printable(note))


def notes_of(other_sets: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What a reader must know of other test sets, each note once: whose it is, and the note."""
    notes: dict[tuple[str, str], str] = {}
    for row in other_sets:
        own = [other["note"] for other in other_sets if other["source"] == row["source"]]
        if row["note"]:
            notes.setdefault((row["source"], row["note"]), row["source"] if len({*own}) == 1 else row["name"])
    return [(name, note) for (_, note), name in notes.items()]


def _is_known(value: float) -> bool:
    return not math.isnan(value)


def _points(share: float) -> str:
    return f"{100 * share:.2f}" if _is_known(share) else _UNKNOWN


def _shown_p(p: float) -> str:
    if not _is_known(p):
        return _UNKNOWN
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def relative(path: Path) -> Path:
    """A path as short as it can be given from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def with_note(data: str | None, note: str) -> str:
    """The name of a data set, with what a reader of its results must know."""
    return f"{data} ({note})" if note else f"{data}"


def shown(name: str, value: float) -> str:
    """A metric as people read it: accuracies in percent, a dash for one that is not known."""
    if math.isnan(value):
        return _UNKNOWN
    if name.removesuffix("_tta").endswith("acc"):
        return f"{100 * value:.2f} %"
    return f"{value:,.0f}" if name == "images_per_second" else f"{value:.4f}"


def duration(seconds: float) -> str:
    """A time as people read it, in one or two units: 4.2 s, 3 min 05 s, 2 h 10 min, 3 d 4 h."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)  # which may round 59 min 59.6 s up
    return f"{hours} h {minutes:02} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def announce(
    settings: Settings, data: ImageDataModule, classifier: ImageClassifier, trainer: L.Trainer, flops: int
) -> None:
    """Say, before training, what is about to be trained, on what and where."""
    sizes = ", ".join(f"{len(index):,} {split}" for split, index in data.index.items() if len(index))
    shape = "x".join(str(size) for size in data.image_shape)
    named = with_note(data.name, data.note)
    log.info("data      %s: %s images of %s, %d classes", named, sizes, shape, len(data.classes))
    num_parameters = sum(parameter.numel() for parameter in classifier.net.parameters())
    size = f"{num_parameters:,} parameters, {flops / 1e6:,.1f} MFLOP an image"
    log.info("model     %s: %s", settings.model["name"], size)
    recipe = [_choice(settings.optimizer), f"lr {settings.optimizer['lr']:g}", _choice(settings.schedule or {})]
    log.info("recipe    %s, batch %d", " ".join(recipe), data.batch_size)
    device = trainer.strategy.root_device
    several = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    log.info("device    %s: %s%s, precision %s", device.type, several, device_name(device), trainer.precision)
    log.info("folder    %s", relative(Path(settings.output_dir)))


def _choice(section: Section) -> str:
    return section.get("_target_", "constant").rpartition(".")[2]


def final_table(metrics: dict[str, Any], path: Path) -> None:
    """Print the table at the end of training.

    Args:
        metrics: What metrics.json holds.
        path: Where it is.
    """
    rows = [(name, shown(name, value)) for name, value in metrics.items() if "/" in name]
    for acc, seconds in metrics.get("seconds_to_val_acc", {}).items():
        if seconds is not None:
            rows.append((f"to val/acc {shown('acc', float(acc))}", f"{seconds:.1f} s"))
    if (temperature := metrics.get("temperature")) is not None:
        rows.append(("temperature", f"{temperature:.4f}"))
    rows.append(("training", f"{metrics['train_seconds']:.1f} s, {metrics['images_per_second']:,.0f} images/s"))
    data = with_note(metrics["data"], metrics["data_note"])
    log_table(f"{metrics['name']} on {data}, seed {metrics['seed']}", rows)
    log.info("numbers   %s", relative(path))
