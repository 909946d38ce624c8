"""Metrics and images as matplotlib figures. No function uses pyplot, which keeps global state."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from cifar_lightning.analysis.confusion import most_confused
from cifar_lightning.errors import in_words, printable, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

MAX_GRID = 96
"""Most images in a grid, so that no figure has more than some 2,000 pixels a side."""

_RIGHT, _WRONG = "#1b6e3c", "#b3261e"

_MAX_CELL_TEXT = 20
"""Largest number of classes for which a confusion matrix has numbers in its cells."""

_MAX_NAMED = 100
"""Largest number of classes for which a confusion matrix has their names at its axes."""

_MAX_CELLS = 300
"""Most cells a side of a confusion matrix; each takes two pixels or more. Of more classes, neighbours share a cell."""

_NUM_CONFUSED = 25
"""Pairs of classes that are named beside a confusion matrix without names."""

_MAX_LINE, _MAX_NAME = 20, 12
"""Most characters of a line of a title and of a class name in it; longer ones would overlap the next title."""


def image_grid(
    images: UInt8[Tensor, "n c h w"],
    titles: Sequence[str],
    *,
    title_colors: Sequence[str] | None = None,
    heading: str = "",
    columns: int = 8,
) -> Figure:
    """Draw images in a grid, each under a title of at most two lines; images of one channel are grey.

    An image of 32x32 takes 128x128 pixels of the figure at its 100 dpi. Each pixel becomes 4x4, so it stays sharp.

    Raises:
        ValueError: If there are more than ``MAX_GRID`` images.
    """
    from matplotlib.figure import Figure

    if len(images) > MAX_GRID:
        raise ValueError(f"a grid has at most {MAX_GRID} images, got {len(images)}")

    colors = title_colors or ["black"] * len(titles)
    rows = -(-len(images) // columns)
    side, gap, title_height, heading_height = 1.28, 0.12, 0.40, 0.3 if heading else 0.0  # inches
    width, height = (side + gap) * columns, (side + title_height) * rows + heading_height + gap / 2
    figure = Figure(figsize=(width, height), dpi=100)
    if heading:
        figure.suptitle(heading, fontsize=11, y=1 - 0.06 / height, va="top")
    # All images stand in one pair of axes, in inches from the upper left: axes for each image take 2.7 times as long.
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    pixels = images.permute(0, 2, 3, 1).numpy()
    for i, (picture, title, color) in enumerate(zip(pixels, titles, colors, strict=True)):
        left = gap / 2 + i % columns * (side + gap)
        top = heading_height + title_height + i // columns * (side + title_height)
        extent = (left, left + side, top + side, top)
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent, aspect="auto")
        lines = "\n".join(_fit(line, _MAX_LINE) for line in title.split("\n")[:2])
        baseline = top - 6 / 72  # 6 of 72 points to an inch
        axis.text(left + side / 2, baseline, lines, ha="center", fontsize=8, color=color, parse_math=False)
    axis.set(xlim=(0, width), ylim=(height, 0))
    return figure


def prediction_grid(
    images: UInt8[Tensor, "n c h w"],
    targets: Int64[Tensor, " n"],
    preds: Int64[Tensor, " n"],
    classes: Sequence[str],
    *,
    confidence: Float[Tensor, " n"],
    heading: str = "",
) -> Figure:
    """Draw images under their predicted class and its confidence; a wrong one also names the true class, in red."""
    titles, colors = [], []
    for target, pred, sure in zip(targets.tolist(), preds.tolist(), confidence.tolist(), strict=True):
        if target == pred:
            titles.append(f"{printable(classes[pred])}\n{sure:.0%}")
        else:
            titles.append(f"✗ {_fit(classes[pred], _MAX_NAME)} {sure:.0%}\nis {printable(classes[target])}")
        colors.append(_RIGHT if target == pred else _WRONG)
    return image_grid(images, titles, title_colors=colors, heading=heading)


def _fit(text: str, length: int) -> str:
    """Any text as one line of at most so many characters, none of which matplotlib would refuse."""
    return shortened(printable(text), length)


def confusion_matrix(confusion: Int64[Tensor, "k k"], classes: Sequence[str]) -> Figure:
    """Draw true classes as rows and predicted classes as columns; colours and numbers are percent of the row.

    The figure has at most some 2,000 pixels a side, whatever the number of classes. Of more than 20 classes there are
    no numbers. Of more than 100 there are no names: the pairs of classes that are confused most stand beside the
    matrix. Of more than 300, each cell stands for several neighbouring classes and has the largest of their values.
    """
    from matplotlib.figure import Figure

    num_classes = len(classes)
    title = f"Accuracy {int(confusion.trace()) / max(int(confusion.sum()), 1):.2%}"
    if num_classes > _MAX_NAMED:
        figure = Figure(figsize=(13, 7), layout="constrained", dpi=100)
        axis, beside = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_percent(figure, axis, confusion, title=title)
        axis.set(xlabel="predicted, by number of the class", ylabel="true")
        _draw_most_confused(beside, confusion, classes)
        return figure
    has_text = num_classes <= _MAX_CELL_TEXT
    side = max(6.0, 0.55 * num_classes if has_text else 0.115 * num_classes)  # inches
    figure = Figure(figsize=(side + 1.4, side + 0.6), layout="constrained", dpi=100)
    axis = figure.subplots()
    percent = _draw_percent(figure, axis, confusion, title=title)
    font_size = min(9.0, 0.6 * 72 * side / num_classes)  # of 72 points to an inch
    names = [_fit(name, _MAX_LINE) for name in classes]
    axis.set_xticks(range(num_classes), names, rotation=45 if has_text else 90, fontsize=font_size, parse_math=False)
    if has_text:
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axis.set_yticks(range(num_classes), names, fontsize=font_size, parse_math=False)
    axis.set(xlabel="predicted", ylabel="true")
    if has_text:
        for (row, column), value in np.ndenumerate(percent):
            color = "black" if value > 50 else "white"  # cividis is dark at its low end
            text = axis.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=color)
            text.set_in_layout(False)  # inside the axes; measuring it takes a fifth of the time at 20 classes
    return figure


def _draw_percent(
    figure: Figure, axis: Axes, confusion: Int64[Tensor, "k k"], *, title: str
) -> Float[np.ndarray, "s s"]:
    """Draw a confusion matrix as colours; returns the percent of its cells.

    Only cells that are not 0 are computed with: there are no more of them than images.
    """
    num_classes = len(confusion)
    per_cell = -(-num_classes // _MAX_CELLS)
    side = -(-num_classes // per_cell)
    rows, columns = confusion.nonzero().unbind(1)
    percent = 100 * confusion[rows, columns].double() / confusion.sum(1)[rows]
    cells = torch.zeros(side * side, dtype=torch.float64)
    cells.scatter_reduce_(0, rows // per_cell * side + columns // per_cell, percent, "amax")
    picture = cells.reshape(side, side).numpy()
    edge = side * per_cell - 0.5
    drawn = axis.imshow(picture, cmap="cividis", vmin=0, vmax=100, extent=(-0.5, edge, edge, -0.5))
    figure.colorbar(drawn, ax=axis, shrink=0.8, label="% of the true class")
    if per_cell > 1:
        title += f"\n{num_classes:,} classes: a cell has the largest value of {per_cell}x{per_cell}"
    axis.set_title(title)
    return picture


def _draw_most_confused(axis: Axes, confusion: Int64[Tensor, "k k"], classes: Sequence[str]) -> None:
    """Draw the pairs of classes that are confused most often, by number and name, as bars of their images."""
    totals = confusion.sum(1)
    pairs = most_confused(confusion, _NUM_CONFUSED)
    names = [
        " → ".join(f"{number} {_fit(classes[number], _MAX_LINE)}" for number in (true, pred)) for true, pred, _ in pairs
    ]
    bars = axis.barh(range(len(pairs)), [count for *_, count in pairs], color=_WRONG)
    axis.bar_label(bars, [f"{count} of {int(totals[true])}" for true, _, count in pairs], padding=3, fontsize=7)
    axis.set_yticks(range(len(pairs)), names, fontsize=7, parse_math=False)
    axis.set_ylim(_NUM_CONFUSED - 0.5, -0.5)
    axis.margins(x=0.2)
    axis.set_xticks([])
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.set_title("Most confused: true → predicted")


@contextmanager
def _any_script() -> Iterator[None]:
    """Silence matplotlib about scripts it cannot draw well; a box stands for a character that its font lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
        yield


@contextmanager
def only_for_show(name: str) -> Iterator[None]:
    """Draw within this: where a picture fails, one line says so, and the run continues.

    Args:
        name: What the line calls the picture.
    """
    try:
        yield
    except Exception as error:  # MemoryError among them
        log.warning("picture   %s cannot be drawn: %s", name, in_words(error))


def to_png(figure: Figure) -> bytes:
    """Draw a figure as PNG at 150 dpi."""
    content = io.BytesIO()
    with _any_script():
        figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def to_pixels(figure: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draw a figure as pixels: uint8 (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with _any_script():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
