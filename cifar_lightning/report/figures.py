"""Metrics and images as matplotlib figures. No function uses pyplot, which keeps global state."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_RIGHT, _WRONG = "#1b6e3c", "#b3261e"

_MAX_CELL_TEXT = 20
"""Largest number of classes for which a confusion matrix has numbers in its cells."""

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
    """
    from matplotlib.figure import Figure

    colors = title_colors or ["black"] * len(titles)
    rows = -(-len(images) // columns)
    side, gap, title_height, heading_height = 1.28, 0.12, 0.40, 0.3 if heading else 0.0  # inches
    width, height = (side + gap) * columns, (side + title_height) * rows + heading_height + gap / 2
    figure = Figure(figsize=(width, height), dpi=100)
    if heading:
        figure.suptitle(heading, fontsize=11, y=1 - 0.06 / height, va="top")
    # The sizes of the grid are known, and constrained layout would take more time than all other steps together.
    figure.subplots_adjust(
        left=gap / 2 / width,
        right=1 - gap / 2 / width,
        bottom=gap / 2 / height,
        top=1 - (heading_height + title_height) / height,
        wspace=gap / side,
        hspace=title_height / side,
    )
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    pixels = images.permute(0, 2, 3, 1).numpy()
    for axis, picture, title, color in zip(axes[: len(pixels)], pixels, titles, colors, strict=True):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        lines = [_shortened(line, _MAX_LINE) for line in title.splitlines()]
        # With y given, matplotlib does not draw the ticks to find a place for the title.
        axis.set_title("\n".join(lines), fontsize=8, color=color, parse_math=False, y=1.0)
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
            titles.append(f"{classes[pred]}\n{sure:.0%}")
        else:
            titles.append(f"✗ {_shortened(classes[pred], _MAX_NAME)} {sure:.0%}\nis {classes[target]}")
        colors.append(_RIGHT if target == pred else _WRONG)
    return image_grid(images, titles, title_colors=colors, heading=heading)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def confusion_matrix(confusion: Int64[Tensor, "k k"], classes: Sequence[str]) -> Figure:
    """Draw true classes as rows and predicted classes as columns; colours and numbers are percent of the row."""
    from matplotlib.figure import Figure

    counts = confusion.double().numpy()
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    num_classes = len(classes)
    has_text = num_classes <= _MAX_CELL_TEXT
    side = max(6.0, 0.62 * num_classes if has_text else 0.14 * num_classes)
    figure = Figure(figsize=(side + 1.4, side + 0.6), layout="constrained", dpi=100)
    axis = figure.subplots()
    drawn = axis.imshow(percent, cmap="cividis", vmin=0, vmax=100)
    figure.colorbar(drawn, ax=axis, shrink=0.8, label="% of the true class")
    font_size = 9 if has_text else 5
    names = [name.replace("$", r"\$") for name in classes]  # matplotlib reads text between two $ as mathematics
    axis.set_xticks(range(num_classes), names, rotation=45 if has_text else 90, fontsize=font_size)
    if has_text:
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axis.set_yticks(range(num_classes), names, fontsize=font_size)
    axis.set(xlabel="predicted", ylabel="true", title=f"Accuracy {np.trace(counts) / max(counts.sum(), 1):.2%}")
    if has_text:
        for (row, column), value in np.ndenumerate(percent):
            color = "black" if value > 50 else "white"  # cividis is dark at its low end
            text = axis.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=color)
            text.set_in_layout(False)  # inside the axes; measuring it takes a fifth of the time at 20 classes
    return figure


@contextmanager
def _any_script() -> Iterator[None]:
    """Silence the warning for each character that matplotlib's font does not have; it draws a box."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG at 150 dpi."""
    with _any_script():
        figure.savefig(path, dpi=150)


def to_pixels(figure: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Draw a figure as pixels: uint8 (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    with _any_script():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
