"""A comparison of runs: groups of them, each over its seeds, and paired tests between the groups."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

from cifar_lightning.config.recipe import Value
from cifar_lightning.report.stats import PairedTest, Summary, holm, paired_test, seeds_needed, summary

ALL_PAIRS = 10
"""Most groups of which every two are compared; of more the first is compared with the others."""

Status = Literal["finished", "running", "failed", "unfinished"]


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        place: Its folder, or the file of its metrics.
        overrides: What it was asked for, by key.
        seed: Its seed; None where that is not known, of a run that has not finished.
        status: Whether it has finished.
        record: What its metrics.json holds, by dotted key; empty where it has not finished.
        reason: Why it has failed.
    """

    place: str
    overrides: Mapping[str, Value]
    seed: int | None
    status: Status
    record: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""

    def number(self, name: str) -> float | None:
        """A metric; None where the run has none of that name."""
        value = self.record.get(name)
        return None if isinstance(value, bool) or not isinstance(value, int | float) else value


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        label: What they have been asked for that others have not.
        runs: All of them.
        counted: The finished run that counts for each seed.
    """

    label: str
    runs: Sequence[Run]
    counted: Mapping[int, Run]

    def values(self, name: str) -> dict[int, float]:
        """A metric by seed."""
        found = {seed: run.number(name) for seed, run in sorted(self.counted.items())}
        return {seed: value for seed, value in found.items() if value is not None}

    def counts(self, run: Run) -> bool:
        """Whether a run is the one that counts for its seed."""
        return run.seed is not None and self.counted.get(run.seed) is run

    def count(self, status: Status) -> int:
        """How many runs have that status."""
        return sum(run.status == status for run in self.runs)


@dataclass(frozen=True)
class Row:
    """A group with its statistics.

    Attributes:
        group: The group.
        summaries: By metric; of those metrics that it has.
        best: Best value of the compared metric; None where no run has it.
        worst: The worst.
    """

    group: Group
    summaries: Mapping[str, Summary]
    best: float | None
    worst: float | None


@dataclass(frozen=True)
class Pair:
    """Two groups over the seeds that both have.

    Attributes:
        first: Row of the group that the difference is counted for.
        second: Row of the group that is subtracted.
        test: Of first minus second; None without a common seed.
        p: The p-value, corrected for the number of pairs by Holm's method; nan where there is no test.
        needed: How many seeds would show a difference like this among as many pairs; None where that is not known, or
            above 10,000.
    """

    first: Row
    second: Row
    test: PairedTest | None
    p: float
    needed: int | None


@dataclass(frozen=True)
class Comparison:
    """Groups and pairs.

    Attributes:
        metric: What is compared.
        ranked_by: The metric that decides the order of rows.
        rows: Groups that have finished runs, best first; then the others.
        pairs: Pairs of them, in the order of rows.
        baseline: The row that all others are compared with; None where every two are.
    """

    metric: str
    ranked_by: str
    rows: Sequence[Row]
    pairs: Sequence[Pair]
    baseline: Row | None

    @property
    def metrics(self) -> list[str]:
        """The metric of the order, the compared one and, where a row has it, that with test-time augmentation."""
        names = list(dict.fromkeys((self.ranked_by, self.metric)))
        with_tta = _with_tta(self.metric)
        has_tta = with_tta != self.metric and any(with_tta in row.summaries for row in self.rows)
        return [*names, *([with_tta] if has_tta else [])]


SECONDS = "train_seconds"

_LESS_IS_BETTER = ("loss", "ece", "brier", "seconds", "flops_per_image")
_MORE_IS_BETTER = ("acc", "images_per_second")


def less_is_better(metric: str) -> bool:
    """Whether a lower value of a metric is the better one."""
    return metric.startswith("seconds_to_") or metric.removesuffix("_tta").endswith(_LESS_IS_BETTER)


def tells_the_better(metric: str) -> bool:
    """Whether one of two values of a metric is the better one, as of accuracies and not of temperatures."""
    return less_is_better(metric) or metric.removesuffix("_tta").endswith(_MORE_IS_BETTER)


def _with_tta(metric: str) -> str:
    return metric if metric.endswith("_tta") else f"{metric}_tta"


def compared(groups: Sequence[Group], metric: str, baseline: Group | None = None) -> Comparison:
    """Compare groups.

    The order is that of a metric of the validation images, where all groups have it: nothing is chosen on test images.

    Args:
        groups: At least one.
        metric: Name of the metric to compare.
        baseline: The group that the others are compared with; None: every two are, or of more than ``ALL_PAIRS`` the
            first one with the others.
    """
    ranked_by = _ranking(groups, metric)
    rows = [_row(group, metric, ranked_by) for group in groups]
    sign = 1 if less_is_better(ranked_by) else -1

    def order(row: Row) -> tuple[bool, float]:
        ranked = row.summaries.get(ranked_by)
        return ranked is None, 0.0 if ranked is None else sign * ranked.mean

    rows.sort(key=order)
    tested = [row for row in rows if metric in row.summaries]
    if baseline is not None:
        single = next(row for row in rows if row.group is baseline)
        chosen = [(other, single) for other in tested if other is not single]
    elif len(tested) > ALL_PAIRS:
        single = tested[0]
        chosen = [(single, other) for other in tested[1:]]
    else:
        single = None
        chosen = list(combinations(tested, 2))
    return Comparison(metric, ranked_by, rows, _pairs(chosen, metric), single)


def _ranking(groups: Sequence[Group], metric: str) -> str:
    """The metric of the validation images that goes with one of the test images, where all groups have it."""
    split, _, name = metric.partition("/")
    of_val = f"val/{name.removesuffix('_tta')}"
    finished = [group for group in groups if group.counted]
    has_val = all(group.values(of_val) for group in finished)
    return of_val if split == "test" and finished and has_val else metric


def _row(group: Group, metric: str, ranked_by: str) -> Row:
    names = dict.fromkeys((ranked_by, metric, _with_tta(metric), SECONDS))
    summaries = {name: summary(list(values.values())) for name in names if (values := group.values(name))}
    ends = sorted(group.values(metric).values(), reverse=not less_is_better(metric))
    return Row(group, summaries, ends[0] if ends else None, ends[-1] if ends else None)


def _pairs(chosen: Sequence[tuple[Row, Row]], metric: str) -> list[Pair]:
    tests: list[PairedTest | None] = []
    for first, second in chosen:
        ours, theirs = first.group.values(metric), second.group.values(metric)
        seeds = [seed for seed in ours if seed in theirs]
        tests.append(paired_test([theirs[seed] for seed in seeds], [ours[seed] for seed in seeds]) if seeds else None)
    corrected = holm([math.nan if test is None else test.p for test in tests])
    num = sum(not math.isnan(p) for p in corrected)

    def needed(test: PairedTest | None) -> int | None:
        return None if test is None else seeds_needed(test.difference.mean, test.difference.sd, tests=max(1, num))

    return [
        Pair(first, second, test, p, needed(test))
        for (first, second), test, p in zip(chosen, tests, corrected, strict=True)
    ]
