"""Checkpoints on the same images: how often each is right, and where they disagree."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from cifar_lightning.errors import counted
from cifar_lightning.report.cells import cell, csv_file
from cifar_lightning.report.comparison_text import SIGNIFICANT, Rows, is_corrected, p_text
from cifar_lightning.report.stats import PairedAccuracies, accuracy_interval, holm, paired_accuracies
from cifar_lightning.report.tables import Justify


@dataclass(frozen=True)
class Contender:
    """What a checkpoint says of N images.

    Attributes:
        name: Its name.
        path: Its file.
        preds: Predicted class of each image.
        confidence: Probability of that class.
    """

    name: str
    path: str
    preds: Int64[Tensor, " n"]
    confidence: Float[Tensor, " n"]


@dataclass(frozen=True)
class Duel:
    """Two checkpoints on the same images.

    Attributes:
        first: Number of the one that the difference is counted for.
        second: Number of the one that is subtracted.
        test: Of first minus second.
        p: McNemar's p-value, corrected for the number of duels by Holm's method.
        both_wrong: Images that neither has right.
    """

    first: int
    second: int
    test: PairedAccuracies
    p: float
    both_wrong: int


@dataclass(frozen=True)
class Disagreement:
    """Two or more checkpoints on the same images, the most accurate first.

    Attributes:
        contenders: The checkpoints.
        targets: Class of each image.
        duels: All pairs.
    """

    contenders: Sequence[Contender]
    targets: Int64[Tensor, " n"]
    duels: Sequence[Duel]

    def right(self, number: int) -> Bool[Tensor, " n"]:
        """Whether a checkpoint has each image right."""
        return self.contenders[number].preds == self.targets

    @property
    def differ(self) -> Bool[Tensor, " n"]:
        """Whether checkpoints predict different classes of an image."""
        preds = torch.stack([contender.preds for contender in self.contenders])
        return (preds != preds[0]).any(0)


def disagreement(contenders: Sequence[Contender], targets: Int64[Tensor, " n"]) -> Disagreement:
    """Compare at least two checkpoints."""
    ranked = sorted(contenders, key=lambda contender: -int((contender.preds == targets).sum()))
    right = [contender.preds == targets for contender in ranked]
    pairs = list(combinations(range(len(ranked)), 2))
    tests = [paired_accuracies(right[second].tolist(), right[first].tolist()) for first, second in pairs]
    corrected = holm([test.p for test in tests])
    both_wrong = [int((~right[first] & ~right[second]).sum()) for first, second in pairs]
    duels = [
        Duel(*pair, test, p, wrong) for pair, test, p, wrong in zip(pairs, tests, corrected, both_wrong, strict=True)
    ]
    return Disagreement(ranked, targets, duels)


def checkpoint_rows(found: Disagreement, *, is_short: bool = False) -> Rows:
    """A row for each checkpoint; see ``duel_rows``."""
    rows = []
    for number, contender in enumerate(found.contenders):
        num_right, num_images = int(found.right(number).sum()), len(found.targets)
        low, high = accuracy_interval(num_right, num_images)
        interval = f"{100 * low:.2f} – {100 * high:.2f}"
        numbers = [f"{100 * num_right / num_images:.2f}", interval, f"{num_right:,}", f"{num_images:,}"]
        rows.append([contender.name, *numbers, *([] if is_short else [contender.path])])
    columns: dict[str, Justify] = {"checkpoint": "left", "accuracy %": "right", "95 % interval": "right"}
    columns |= {"right": "right", "images": "right"}
    return Rows(columns if is_short else columns | {"file": "left"}, rows)


def duel_rows(found: Disagreement, *, is_short: bool = False) -> Rows:
    """A row for each pair of checkpoints.

    Args:
        found: What is shown.
        is_short: Whether it is for the console, where columns are few.
    """
    rows, corrected = [], is_corrected(found.duels)
    for duel in found.duels:
        test = duel.test
        points, ends = f"{100 * test.difference:+.2f}", f"{100 * test.low:.2f} – {100 * test.high:.2f}"
        names = [found.contenders[number].name for number in (duel.first, duel.second)]
        # The difference is of first minus second, so the test's second is the duel's first.
        counts = [f"{count:,}" for count in (test.only_second, test.only_first, duel.both_wrong)]
        if is_short:
            rows.append([*names, f"{points} ({ends})", p_text(duel.p), f"{counts[0]} : {counts[1]}", counts[2]])
        else:
            rows.append([*names, points, ends, p_text(test.p), *([p_text(duel.p)] if corrected else []), *counts])
    columns: dict[str, Justify] = {"checkpoint": "left", "minus": "left"}
    short = ("points (95 %)", "p (Holm)" if corrected else "p", "only right", "both wrong")
    ps = ("p", "p (Holm)") if corrected else ("p",)
    long = ("points", "95 % interval", *ps, "only first right", "only second right", "both wrong")
    return Rows(columns | dict.fromkeys(short if is_short else long, "right"), rows)


def verdict(found: Disagreement) -> str:
    """What the comparison says, in a sentence or two."""
    duel, images = found.duels[0], counted(len(found.targets), "image")
    best, other = (found.contenders[number].name for number in (duel.first, duel.second))
    test = duel.test
    p = p_text(duel.p) if duel.p < 0.001 else f"= {p_text(duel.p)}"
    accuracy = f"{100 * found.right(0).double().mean().item():.2f} %"
    corrected = " after Holm" if is_corrected(found.duels) else ""
    tested = (
        f"{100 * test.difference:.2f} points (95 % interval {100 * test.low:.2f} to {100 * test.high:.2f}, "
        f"McNemar's exact p {p}{corrected})"
    )
    is_shown = "a difference is shown" if duel.p <= SIGNIFICANT else "no difference is shown"
    if test.difference == 0:
        return f"Checkpoints {best} and {other} have {accuracy} of {images} right each (p {p}{corrected})."
    right = f"{accuracy} of {images} right"
    return f"Checkpoint {best} has {right}, checkpoint {other} less by {tested}: {is_shown}."


def disagreements_csv(found: Disagreement, classes: Sequence[str], files: Sequence[str] | None) -> bytes:
    """A line for each image of which checkpoints predict different classes."""
    names = [cell(name) for name in classes]
    pairs = [(f"pred {cell(one.name)}", f"confidence {cell(one.name)}") for one in found.contenders]
    lines: list[list[Any]] = [
        ["index", "target", *(one for pair in pairs for one in pair), *(["path"] if files else [])]
    ]
    for number in found.differ.nonzero().flatten().tolist():
        told: list[Any] = []
        for contender in found.contenders:
            told += [names[int(contender.preds[number])], f"{float(contender.confidence[number]):.6f}"]
        lines.append([number, names[int(found.targets[number])], *told, *([cell(files[number])] if files else [])])
    return csv_file(lines)
