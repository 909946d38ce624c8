"""All runs of a comparison as dots: a line for each group, with its mean and interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cifar_lightning.errors import printable, shortened
from cifar_lightning.report.comparison import Comparison, Row
from cifar_lightning.report.comparison_text import heading, interval, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_GROUPS = 30
"""Most groups that are drawn, the first ones."""

_MAX_DOTS = 300
"""Most dots of a group; of more runs some are left out, evenly from the lowest to the highest."""

_MAX_LABEL = 64


@dataclass(frozen=True)
class Colors:
    """Colours of the plot: of texts, of dots, and of means with their intervals."""

    ink: str = "#1b1f22"
    dots: str = "#5b6469"
    mean: str = "#0f766e"


def runs_plot(comparison: Comparison, colors: Colors) -> Figure:
    """Draw the compared metric of all runs; the first group on top.

    Args:
        comparison: What is drawn: groups that have the metric.
        colors: Its colours.
    """
    from matplotlib.figure import Figure

    metric = comparison.metric
    rows = [row for row in comparison.rows if metric in row.summaries][:MAX_GROUPS]
    scale = 100 if unit(metric) else 1
    figure = Figure(figsize=(5.2, 0.75 + 0.5 * len(rows)))
    axis = figure.add_axes((0.03, 0.5 / figure.get_figheight(), 0.94, 1 - 0.6 / figure.get_figheight()))
    for place, row in enumerate(rows):
        _draw(axis, row, metric, place=place, scale=scale, colors=colors)
    axis.set(ylim=(len(rows) - 0.45, -0.75), yticks=[])
    axis.set_xlabel(heading(metric), fontsize=10, color=colors.ink)
    axis.tick_params(labelsize=9.5)
    axis.spines["left"].set_visible(False)
    axis.grid(axis="x", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.margins(x=0.04)
    return figure


def _draw(axis: Axes, row: Row, metric: str, *, place: int, scale: float, colors: Colors) -> None:
    values = [scale * value for value in _thinned(sorted(row.group.values(metric).values()))]
    found = row.summaries[metric]
    axis.scatter(values, [place] * len(values), s=20, color=colors.dots, linewidths=0, alpha=0.6, zorder=3)
    if not math.isnan(found.low):
        axis.plot(
            [scale * end for end in interval(metric, found)],
            [place, place],
            color=colors.mean,
            linewidth=1.6,
            zorder=2,
        )
    axis.plot(
        [scale * found.mean], [place], marker="|", markersize=13, markeredgewidth=2.4, color=colors.mean, zorder=4
    )
    label = f"{shortened(printable(row.group.label), _MAX_LABEL)}, n = {found.num}"
    axis.annotate(
        label,
        (0, place - 0.26),
        xycoords=("axes fraction", "data"),
        fontsize=10.5,
        color=colors.ink,
        va="bottom",
        parse_math=False,
    )


def _thinned(values: Sequence[float]) -> list[float]:
    if len(values) <= _MAX_DOTS:
        return list(values)
    last = len(values) - 1
    return [values[round(i * last / (_MAX_DOTS - 1))] for i in range(_MAX_DOTS)]
