"""The diagrams of an evaluation's page, as figures in the page's colours: make them within ``html.STYLE``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cifar_lightning.analysis.confidence import NUM_BINS, Coverage, Reliability
from cifar_lightning.errors import counted
from cifar_lightning.report.html import ACCENT, FAULT, MUTED, QUIET

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = Sequence[tuple[int, float]]

_MAX_POINTS = 300
"""Most points of a drawn curve, so that a page stays small."""

_FONT = {"fontsize": 8}


def reliability_diagram(shown: Reliability, uncalibrated: Reliability | None) -> Figure:
    """Accuracy by confidence, above the number of images by confidence.

    Args:
        shown: The bins of the confidences that are shown.
        uncalibrated: Those before calibration, as a line of their own; None for none.
    """
    figure = Figure(figsize=(4.1, 3.8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
    edges = np.linspace(0, 1, NUM_BINS + 1)
    has_images = shown.num_images.numpy() > 0
    above.bar(edges[:-1], np.nan_to_num(shown.acc.numpy()), 1 / NUM_BINS, align="edge", color=ACCENT, alpha=0.3)
    above.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
    above.plot(shown.confidence[has_images], shown.acc[has_images], "o-", color=ACCENT, markersize=4, label="accuracy")
    if uncalibrated is not None:
        seen = uncalibrated.num_images.numpy() > 0
        label = "before the temperature"
        above.plot(uncalibrated.confidence[seen], uncalibrated.acc[seen], "o:", color=FAULT, markersize=3, label=label)
        above.legend(loc="lower right", **_FONT)
    below.bar(edges[:-1], shown.num_images.numpy(), 1 / NUM_BINS, align="edge", color=MUTED)
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    below.set(xlabel="confidence", ylabel="images")
    below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    for axis in (above, below):
        axis.xaxis.set_major_formatter(PercentFormatter(1, 0))
        axis.tick_params(labelsize=8)
    above.yaxis.set_major_formatter(PercentFormatter(1, 0))
    return figure


def coverage_curve(curve: Coverage) -> Figure:
    """Accuracy on the images that are kept, by the share that is left out, the least confident first."""
    figure = Figure(figsize=(4.1, 3.8), layout="constrained")
    axis = figure.subplots()
    left_out = 1 - curve.num_kept.numpy() / curve.num_images
    chosen = np.flatnonzero(curve.num_kept.numpy() >= _least_drawn(curve))
    chosen = chosen[np.unique(np.linspace(0, len(chosen) - 1, _MAX_POINTS).round().astype(int))]
    acc = curve.acc.numpy()[chosen]
    # Unclipped, for the axis ends at 100 %, where the line may be.
    axis.plot(left_out[chosen], acc, color=ACCENT, linewidth=2, clip_on=False)
    axis.plot(left_out[chosen[-1:]], acc[-1:], "o", color=ACCENT, markersize=5, clip_on=False)
    margin = max(0.05 * (acc.max() - acc.min()), 0.01)
    axis.set(xlim=(-0.01, 1), ylim=(max(0, acc.min() - margin), min(1, acc.max() + margin)))
    axis.set(xlabel="left out, the least confident first", ylabel="accuracy on the rest")
    axis.grid(axis="y", linewidth=0.6)
    axis.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.tick_params(labelsize=8)
    return figure


def end_of_coverage(curve: Coverage) -> str:
    """Why the line of ``coverage_curve`` ends before all images are left out, as a sentence."""
    least, surest = _least_drawn(curve), int(curve.num_kept[0])
    if surest > least:  # they are left out together
        return f"The line ends at the {surest:,} images of the highest confidence."
    return f"The line ends at {counted(least, 'image')}: of fewer an accuracy says little."


def _least_drawn(curve: Coverage) -> int:
    """Fewest images whose accuracy is drawn: a hundredth, or ten."""
    return min(curve.num_images, max(10, curve.num_images // 100))


def training_curve(train: Points, val: Points, *, is_acc: bool) -> Figure:
    """Loss or accuracy by optimizer steps, of training and validation; either may have no points.

    Args:
        train: Steps and values.
        val: Likewise.
        is_acc: Whether the values are accuracies.
    """
    figure = Figure(figsize=(4.1, 2.9), layout="constrained")
    axis = figure.subplots()
    for points, color, label in ((train, MUTED, "training"), (val, ACCENT, "validation")):
        if points:
            _draw_curve(axis, points, color=color, label=label)
    axis.set(xlabel="optimizer steps", ylabel="accuracy" if is_acc else "loss")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    if is_acc:
        axis.yaxis.set_major_formatter(PercentFormatter(1, 0))
    axis.grid(axis="y", linewidth=0.6)
    axis.tick_params(labelsize=8)
    axis.legend(**_FONT)
    return figure


def _draw_curve(axis: Axes, points: Points, *, color: str, label: str) -> None:
    """Draw a curve; of very many points, means of as many as make it readable."""
    values = np.asarray(points, dtype=np.float64)
    size = math.ceil(len(values) / _MAX_POINTS)
    means = np.stack([part.mean(0) for part in np.split(values, range(size, len(values), size))])
    few = len(means) <= 30
    axis.plot(means[:, 0], means[:, 1], "o-" if few else "-", color=color, linewidth=1.8, markersize=3, label=label)
