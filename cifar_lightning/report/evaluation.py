"""An evaluation's figures: what metrics.json, predictions.csv, the pictures and the report show alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Bool, Int64, UInt8
from torch import Tensor

from cifar_lightning.analysis.confidence import NUM_BINS, Coverage, Reliability, coverage, reliability
from cifar_lightning.analysis.confusion import PerClass, most_confused, per_class
from cifar_lightning.analysis.label_errors import LabelErrors, label_errors
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.data import ImageDataModule
from cifar_lightning.metrics import Evaluation, at_temperature
from cifar_lightning.report.stats import accuracy_interval
from cifar_lightning.report.tables import shown

Gather = Callable[[Int64[Tensor, " b"]], UInt8[Tensor, "b c h w"]]
"""Images of the split by their numbers in it."""

REACHED = (0.9, 0.95, 0.99)
"""Accuracies of which is said how many images must be left out to reach them."""

MAX_MATRIX = 20
"""Most classes of a confusion matrix that is written out."""

NUM_CONFUSED = 25
"""Most pairs of classes that are named."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A split's images, evaluated, in the order of ``data.eval_batches(split)``.

    Attributes:
        split: Name of the split.
        classes: Names of the classes.
        targets: Class of each image.
        files: Path of each image; None for data that are no files.
        plain: The evaluation.
        augmented: That with test-time augmentation, if there is one.
        temperature: The classifier's, see ``ImageClassifier``.
    """

    split: str
    classes: Sequence[str]
    targets: Int64[Tensor, " n"]
    files: Sequence[str] | None = None
    plain: Evaluation
    augmented: Evaluation | None = None
    temperature: float | None = None

    @cached_property
    def calibrated(self) -> Evaluation | None:
        """The evaluation with calibrated probabilities; None without a temperature."""
        return self._calibrated(self.plain)

    @cached_property
    def calibrated_augmented(self) -> Evaluation | None:
        """Likewise with test-time augmentation."""
        return self._calibrated(self.augmented)

    def _calibrated(self, evaluation: Evaluation | None) -> Evaluation | None:
        if evaluation is None or self.temperature is None:
            return None
        return at_temperature(evaluation, self.targets, self.temperature)

    @property
    def shown(self) -> Evaluation:
        """The evaluation whose confidences are shown: the calibrated one where there is one."""
        return self.calibrated or self.plain

    @property
    def shown_augmented(self) -> Evaluation | None:
        """Likewise with test-time augmentation."""
        return self.calibrated_augmented or self.augmented

    @cached_property
    def is_correct(self) -> Bool[Tensor, " n"]:
        """Whether each image is predicted as what it is."""
        return self.plain.preds == self.targets

    @cached_property
    def per_class(self) -> PerClass:
        """Figures of each class."""
        return per_class(self.plain.confusion)

    @cached_property
    def coverage(self) -> Coverage:
        """Accuracy where the least confident images are left out."""
        return coverage(self.shown.confidence, self.is_correct)

    @cached_property
    def label_errors(self) -> LabelErrors:
        """Labels that may be wrong."""
        return label_errors(self.shown.logits.double().softmax(1), self.targets)

    def reliability(self, evaluation: Evaluation) -> Reliability:
        """Accuracy by confidence."""
        return reliability(evaluation.confidence, self.is_correct)


def evaluated(classifier: ImageClassifier, data: ImageDataModule, split: str) -> Evaluated:
    """What a classifier has last evaluated of a split: its first images, or all."""
    plain = classifier.evaluations[split]
    files = data.files(split)
    return Evaluated(
        split=split,
        classes=data.classes,
        targets=data.targets(split)[: plain.num_images],
        files=files and files[: plain.num_images],
        plain=plain,
        augmented=classifier.augmented.get(split),
        temperature=classifier.temperature,
    )


def figures(result: Evaluated) -> dict[str, Any]:
    """The figures for a table: ``<split>/acc`` and so on, and ``<split>/acc_tta`` with test-time augmentation."""
    evaluations = [("", result.plain, result.calibrated), ("_tta", result.augmented, result.calibrated_augmented)]
    return {
        f"{result.split}/{name}{suffix}": value
        for suffix, plain, calibrated in evaluations
        if plain is not None
        for name, value in _figures(plain, calibrated).items()
    }


def _figures(plain: Evaluation, calibrated: Evaluation | None) -> dict[str, float]:
    low, high = accuracy_interval(int(plain.confusion.trace()), plain.num_images)
    found = {"acc": plain.acc, "acc_low": low, "acc_high": high, **plain.scalars(), "brier": plain.brier}
    if plain.top5_acc is not None:
        found["top5_acc"] = plain.top5_acc
    if calibrated is not None:
        found |= {f"{name}_calibrated": getattr(calibrated, name) for name in ("loss", "ece", "brier")}
    return found


def figure_rows(result: Evaluated) -> list[tuple[str, str, str]]:
    """The figures as rows of a table on the console: a name, its value and, of an accuracy, its 95 % interval."""
    found = figures(result)
    intervals = {}
    for suffix in ("", "_tta"):
        if (name := f"{result.split}/acc{suffix}") in found:
            low, high = (100 * found[f"{result.split}/acc_{end}{suffix}"] for end in ("low", "high"))
            intervals[name] = f"({low:.2f} to {high:.2f})"
    return [
        (name, shown(name, value), intervals.get(name, ""))
        for name, value in found.items()
        if "/acc_low" not in name and "/acc_high" not in name
    ]


def details(result: Evaluated) -> dict[str, Any]:
    """The figures behind the tables and diagrams of a report."""
    names, split, confusion = result.classes, result.split, result.plain.confusion
    found: dict[str, Any] = {
        f"{split}/class_acc": dict(zip(names, result.plain.class_acc, strict=True)),
        "temperature": result.temperature,
        "per_class": dict(zip(names, _rows(vars(result.per_class)), strict=True)),
        "most_confused": [
            {"target": names[target], "pred": names[pred], "num_images": num}
            for target, pred, num in most_confused(confusion, NUM_CONFUSED)
        ],
        "reliability": _bins(result.reliability(result.plain)),
        "coverage": [reached(result.coverage, acc) for acc in REACHED],
        "num_suspected_labels": len(result.label_errors.index),
    }
    if len(names) <= MAX_MATRIX:
        found["confusion"] = confusion.tolist()
    if result.calibrated is not None:
        found["reliability_calibrated"] = _bins(result.reliability(result.calibrated))
    return found


def reached(curve: Coverage, acc: float) -> dict[str, Any]:
    """How many images are kept to reach an accuracy, and from which confidence; nulls where none reaches it."""
    point = curve.to_reach(acc)
    if point is None:
        return {"acc": acc, "num_kept": 0, "left_out": 1.0, "least_confidence": None}
    num_kept, limit = int(curve.num_kept[point]), float(curve.limit[point])
    return {
        "acc": acc,
        "num_kept": num_kept,
        "left_out": 1 - num_kept / curve.num_images,
        "least_confidence": limit,
    }


def _bins(bins: Reliability) -> list[dict[str, Any]]:
    edges = [{"low": i / NUM_BINS, "high": (i + 1) / NUM_BINS} for i in range(NUM_BINS)]
    return [edge | row for edge, row in zip(edges, _rows(vars(bins)), strict=True)]


def _rows(columns: dict[str, Tensor]) -> list[dict[str, Any]]:
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in values]
