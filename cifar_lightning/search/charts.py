"""The pictures of a search: its history, what counts, and all trials in parallel coordinates; in the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cifar_lightning.errors import printable, shortened
from cifar_lightning.report.html import ACCENT, FAULT, INK, LINE, MUTED, QUIET, SURFACE
from cifar_lightning.search.results import Results, Trial
from cifar_lightning.search.space import Parameter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_NAME = 28
_MAX_LINES = 300
"""Most lines in parallel coordinates: the best ones."""


def history(found: Results) -> Figure:
    """Accuracy by trial, and the best so far."""
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axis = figure.subplots()
    complete = [trial for trial in found.trials if trial.state == "complete" and trial.acc is not None]
    pruned = [trial for trial in found.trials if trial.state == "pruned" and trial.acc is not None]
    failed = [trial.number for trial in found.trials if trial.state == "failed"]
    best = np.maximum.accumulate([trial.acc or 0.0 for trial in complete]) if complete else np.empty(0)
    axis.step(
        [trial.number for trial in complete], best, where="post", color=ACCENT, linewidth=1.6, label="best so far"
    )
    for trials, color, label in ((complete, ACCENT, "complete"), (pruned, MUTED, "pruned")):
        if trials:
            numbers, accs = [trial.number for trial in trials], [trial.acc or 0.0 for trial in trials]
            axis.plot(numbers, accs, "o", color=color, markersize=4, label=label)
    if failed:
        axis.plot(failed, [axis.get_ylim()[0]] * len(failed), "x", color=FAULT, markersize=5, label="failed")
    axis.set(xlabel="trial", ylabel="validation accuracy")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.yaxis.set_major_formatter(PercentFormatter(1))
    axis.grid(axis="y", linewidth=0.6)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8)
    return figure


def importances(found: Results) -> Figure:
    """Which keys the accuracy depends on."""
    ranked = list(found.importances.items())[:20]
    figure = Figure(figsize=(5.2, 0.8 + 0.34 * len(ranked)), layout="constrained")
    axis = figure.subplots()
    places = range(len(ranked))
    axis.barh(places, [value for _, value in ranked], height=0.55, color=ACCENT)
    axis.set_yticks(places, [_name(key) for key, _ in ranked], parse_math=False)
    axis.invert_yaxis()
    axis.set(xlabel="importance", xlim=(0, 1))
    axis.xaxis.set_major_formatter(PercentFormatter(1, 0))
    axis.tick_params(labelsize=8)
    return figure


def parallel(found: Results) -> Figure:
    """A line for each complete trial over all keys to its accuracy; the better, the stronger."""
    parameters = found.space.parameters
    trials = sorted((one for one in found.trials if one.state == "complete" and one.acc is not None), key=_acc)
    trials = trials[-_MAX_LINES:]
    figure = Figure(figsize=(max(5.2, 1.5 * (len(parameters) + 1)), 3.4), layout="constrained")
    axis = figure.subplots()
    accs = np.array([_acc(trial) for trial in trials])
    span = accs.max() - accs.min()
    heights = [_heights(parameter, trials) for parameter in parameters] + [
        (accs - accs.min()) / span if span else accs * 0 + 0.5
    ]
    for i, line in enumerate(np.stack(heights, 1)):
        is_best = trials[i] is found.best
        strength = 0.12 + 0.6 * (i / len(trials)) ** 2
        axis.plot(
            line,
            color=ACCENT if not is_best else INK,
            alpha=1 if is_best else strength,
            linewidth=2 if is_best else 1.1,
        )
    for place, parameter in enumerate(parameters):
        axis.axvline(place, color=LINE, linewidth=1)
        _label(axis, place, parameter)
    axis.axvline(len(parameters), color=LINE, linewidth=1)
    for height, acc in ((0.0, accs.min()), (1.0, accs.max())):
        axis.annotate(
            f"{100 * acc:.2f} %",
            (len(parameters), height),
            (5, 0),
            textcoords="offset points",
            fontsize=8,
            color=QUIET,
            va="center",
        )
    axis.set_xticks(range(len(parameters) + 1), [*(_name(one.key) for one in parameters), "val/acc"], parse_math=False)
    axis.set(yticks=[], ylim=(-0.05, 1.05), xlim=(-0.25, len(parameters) + 0.45))
    axis.spines[:].set_visible(False)
    axis.tick_params(labelsize=8, length=0)
    return figure


def _acc(trial: Trial) -> float:
    return trial.acc or 0.0


def _heights(parameter: Parameter, trials: Sequence[Trial]) -> np.ndarray:
    return np.array([_height(parameter, trial.texts[parameter.key]) for trial in trials])


def _height(parameter: Parameter, text: str) -> float:
    """Where a value stands on its axis, from 0 to 1: on a scale, or in the order of the choice."""
    if parameter.low is None or parameter.high is None:
        return parameter.texts.index(text) / max(1, len(parameter.texts) - 1)
    low, high, value = parameter.low, parameter.high, float(text)
    if parameter.is_log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low)


def _label(axis: Axes, place: int, parameter: Parameter) -> None:
    if parameter.low is None or parameter.high is None:
        marks = [(_height(parameter, text), text) for text in parameter.texts[:12]]
    else:
        marks = [(0.0, f"{parameter.low:g}"), (1.0, f"{parameter.high:g}")]
    for height, text in marks:
        axis.annotate(
            shortened(printable(text), 16),
            (place, height),
            (4, 0),
            textcoords="offset points",
            fontsize=8,
            color=QUIET,
            va="center",
            parse_math=False,
            bbox={"facecolor": SURFACE, "edgecolor": "none", "pad": 1},  # no line strikes it through
        )


def _name(key: str) -> str:
    return shortened(printable(key), _MAX_NAME)
