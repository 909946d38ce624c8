"""report.html: an evaluation as a page for people, with the figures of metrics.json."""

import math
import shlex
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from jaxtyping import Float64
from torch import Tensor

from cifar_lightning.analysis.confusion import most_confused, taken_for
from cifar_lightning.errors import shortened
from cifar_lightning.report import charts, examples, html
from cifar_lightning.report.evaluation import MAX_MATRIX, NUM_CONFUSED, Evaluated, Gather
from cifar_lightning.report.tables import notes_of

MAX_ROWS = 30
"""Most classes whose rows all stand in the open; of more, the worst and the best do, and the others are folded."""

_NUM_EXTREME = 10
_MAX_FOLDED = 2000
_NUM_NAMED = 12
"""Pairs of confused classes beside a matrix that is written out."""


_NO_RECIPE = ("classes", "fingerprint", "output_dir", "resume")
"""Settings of a run that are not shown as its recipe."""


def evaluation_page(
    result: Evaluated,
    metrics: Mapping[str, Any],
    gather: Gather,
    *,
    recipe: Mapping[str, Any],
    curves: Mapping[str, charts.Points],
) -> str:
    """The page.

    Args:
        result: The evaluation.
        metrics: What metrics.json holds.
        gather: Gives images to show.
        recipe: The settings of the training.
        curves: Points by ``train/loss``, ``train/acc``, ``val/loss`` and ``val/acc``, as many as there are.
    """
    split = result.split
    values = {name.removeprefix(f"{split}/"): value for name, value in metrics.items() if name.startswith(f"{split}/")}
    return html.page(
        "evaluation.html",
        split=split,
        metrics=metrics,
        figures=values,
        temperature=result.temperature,
        num_correct=int(result.is_correct.sum()),
        verdict=_verdict(result),
        classes=_class_rows(result),
        matrix=_matrix(result) if len(result.classes) <= MAX_MATRIX else None,
        confused=_confused(result),
        diagrams=_diagrams(result),
        coverage=metrics["coverage"],
        coverage_end=charts.end_of_coverage(result.coverage),
        mistakes=examples.mistakes(result, gather),
        hits=examples.hits(result, gather),
        sure_from=examples.SURE_FROM,
        suspects=examples.suspects(result, gather),
        curves=_curves(curves),
        recipe=_recipe(recipe),
        facts=_facts(metrics),
        command=shlex.join(["python", "evaluate.py", *metrics["overrides"]]),
        other_sets=(sets := metrics.get("other_sets", [])),
        notes=notes_of(sets),
    )


def _recipe(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings by dotted key, as texts."""
    rows = []
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            rows += _recipe(value, f"{prefix}{name}.") if name not in _NO_RECIPE else []
        elif prefix or name not in _NO_RECIPE:
            rows.append((f"{prefix}{name}", _short(value)))
    return rows


def _short(value: Any) -> str:
    return shortened(str(value), 300)


def _verdict(result: Evaluated) -> dict[str, Any]:
    """What is worst, and whether the confidences can be believed."""
    figures, shown = result.per_class, result.shown
    recall = figures.recall.nan_to_num(math.inf)
    worst = int(recall.argmin())
    taken, num = taken_for(result.plain.confusion).get(worst, (worst, 0))
    probability, num_images = shown.confidence.double(), result.plain.num_images
    confidence = probability.mean().item()
    # Of the accuracy, were the confidences right.
    standard_error = max((probability * (1 - probability)).sum().sqrt().item() / num_images, 1e-9)
    return {
        "worst": result.classes[worst],
        "worst_acc": recall[worst].item(),
        "is_any_wrong": num > 0,
        "taken": result.classes[taken],
        "taken_share": num / max(int(figures.num_images[worst]), 1),
        "confidence": confidence,
        "acc": result.plain.acc,
        "lean": 0 if abs(confidence - result.plain.acc) < 2 * standard_error else confidence - result.plain.acc,
        "num_suspects": len(result.label_errors.index),
    }


def _class_rows(result: Evaluated) -> dict[str, list[dict[str, Any]]]:
    """Rows of the table of classes: all of few; of many the worst and the best by their accuracy, and all, folded."""
    figures, wrong = result.per_class, taken_for(result.plain.confusion)
    columns = {name: values.tolist() for name, values in vars(figures).items()}

    def row(number: int) -> dict[str, Any]:
        found = {name: values[number] for name, values in columns.items()} | {"name": result.classes[number]}
        if number in wrong:
            pred, num = wrong[number]
            found |= {"taken": result.classes[pred], "taken_num": num}
        return found

    if len(result.classes) <= MAX_ROWS:
        return {"all": [row(number) for number in range(len(result.classes))]}
    ranked = _ranked(figures.recall)
    half = min(_NUM_EXTREME, len(ranked) // 2)
    return {
        "all": [],
        "worst": [row(number) for number in ranked[:half]],
        "best": [row(number) for number in reversed(ranked[len(ranked) - half :])],
        "folded": [row(number) for number in range(min(len(result.classes), _MAX_FOLDED))],
    }


def _ranked(recall: Float64[Tensor, " k"]) -> list[int]:
    """Numbers of the classes that have images, the worst first."""
    order = recall.nan_to_num(math.inf).argsort(stable=True)
    return order[: int((~recall.isnan()).sum())].tolist()


def _matrix(result: Evaluated) -> list[dict[str, Any]]:
    """Rows of the confusion matrix, with the share of the row that each cell is."""
    confusion, names = result.plain.confusion, result.classes
    shares = (confusion.double() / confusion.sum(1, keepdim=True)).nan_to_num()
    return [
        {"name": name, "num_images": sum(counts), "cells": list(zip(counts, row, strict=True))}
        for name, counts, row in zip(names, confusion.tolist(), shares.tolist(), strict=True)
    ]


def _confused(result: Evaluated) -> list[dict[str, Any]]:
    at_most = _NUM_NAMED if len(result.classes) <= MAX_MATRIX else NUM_CONFUSED
    names, num_images = result.classes, result.per_class.num_images
    return [
        {"target": names[target], "pred": names[pred], "num": num, "share": num / int(num_images[target])}
        for target, pred, num in most_confused(result.plain.confusion, at_most)
    ]


def _diagrams(result: Evaluated) -> dict[str, Any]:
    uncalibrated = result.reliability(result.plain) if result.calibrated else None
    with mpl.rc_context(html.STYLE):
        reliability = charts.reliability_diagram(result.reliability(result.shown), uncalibrated)
        coverage = charts.coverage_curve(result.coverage)
    about = "Accuracy of the images in each of 15 bins of confidence, and the number of images in each"
    return {
        "reliability": html.svg(reliability, about),
        "coverage": html.svg(coverage, "Accuracy on the images that are kept, by the share that is left out"),
    }


def _curves(curves: Mapping[str, charts.Points]) -> list[Any]:
    drawn = []
    for name, words in (("loss", "Loss"), ("acc", "Accuracy")):
        train, val = curves.get(f"train/{name}", ()), curves.get(f"val/{name}", ())
        if train or val:
            with mpl.rc_context(html.STYLE):
                figure = charts.training_curve(train, val, is_acc=name == "acc")
            drawn.append(html.svg(figure, f"{words} during training, by optimizer steps"))
    return drawn


def _facts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What it takes to reproduce the figures."""
    dirty = ", with changes that are not committed" if metrics["dirty"] else ""
    found = {
        "checkpoint": metrics["ckpt"],
        "seed": metrics["seed"],
        "device": f"{metrics['device']}, precision {metrics['precision']}",
        "seconds": f"{metrics['seconds']:.1f}",
        "commit": f"{metrics['commit'] or 'no git checkout'}{dirty}",
        "versions": ", ".join(f"{name} {version}" for name, version in metrics["versions"].items()),
        "data": ", ".join(f"{name} {value}" for name, value in metrics["fingerprint"].items()),
    }
    return [(name, _short(value)) for name, value in found.items()]
