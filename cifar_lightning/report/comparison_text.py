"""A comparison in words and rows, for the console, Markdown and the page."""

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass

from cifar_lightning.errors import listed, shortened
from cifar_lightning.report.comparison import SECONDS, Comparison, Pair, Row, less_is_better, tells_the_better
from cifar_lightning.report.stats import LEVEL, Summary
from cifar_lightning.report.tables import Justify

SIGNIFICANT = 1 - LEVEL
"""Largest p-value with which a difference is said to be shown."""


MAX_ROWS = 1_000
"""Most rows of a table of a page, and in Markdown; the CSV files have all."""


@dataclass(frozen=True)
class Rows:
    """A table.

    Attributes:
        columns: Headings, and to which side a column's texts stand.
        rows: The texts.
        total: How many rows a table has that these are the first of; 0 where they are all.
    """

    columns: Mapping[str, Justify]
    rows: Sequence[Sequence[str]]
    total: int = 0

    def for_page(self) -> "Rows":
        """The first ``MAX_ROWS`` of them, with texts of a length that a page can show."""
        shown = [[shortened(text, 400) for text in row] for row in self.rows[:MAX_ROWS]]
        return Rows(self.columns, shown, total=len(self.rows))


def figure(metric: str, value: float | None, *, sign: bool = False) -> str:
    """A metric in a table, without a unit: accuracies in percent."""
    if value is None or math.isnan(value):
        return "–"
    if unit(metric):
        return f"{100 * value:{'+' if sign else ''}.2f}"
    return f"{value:{'+' if sign else ''}.{4 if abs(value) < 10 else 1}f}"


def unit(metric: str) -> str:
    """The unit of a metric in a table."""
    return "%" if metric.removesuffix("_tta").endswith("acc") else ""


def heading(metric: str) -> str:
    """A metric as the heading of a column."""
    return f"{metric} {unit(metric)}".strip() if metric != SECONDS else "train s"


def p_text(p: float) -> str:
    """A p-value.

    >>> p_text(0.0123), p_text(0.00001), p_text(float("nan"))
    ('0.012', '< 0.001', '–')
    """
    if math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def interval(metric: str, found: Summary) -> tuple[float, float]:
    """The ends of an interval of a mean, as far as the metric goes: an accuracy is in [0, 1]."""
    return (max(0.0, found.low), min(1.0, found.high)) if unit(metric) else (found.low, found.high)


def with_interval(metric: str, found: Summary | None, *, sign: bool = False) -> str:
    """A mean with half of its 95 % interval."""
    if found is None:
        return "–"
    half = "" if math.isnan(found.high) else f" ± {figure(metric, found.high - found.mean)}"
    return f"{figure(metric, found.mean, sign=sign)}{half}"


def group_rows(comparison: Comparison, *, is_short: bool = False) -> Rows:
    """A row for each group.

    Args:
        comparison: What is shown.
        is_short: Whether it is for the console, where columns are few.
    """
    metric = comparison.metric
    has_rest = any(row.group.count("finished") < len(row.group.runs) for row in comparison.rows)
    others = [name for name in comparison.metrics if name != metric]
    columns: dict[str, Justify] = {"group": "left", "n": "right"}
    columns |= {heading(name): "right" for name in others if name.startswith("val/")}
    columns |= {heading(metric): "right", "sd": "right"}
    columns |= {"worst – best": "right"} if is_short else {"95 % interval": "right", "best": "right", "worst": "right"}
    columns |= {heading(name): "right" for name in others if not name.startswith("val/")}
    columns["train s"] = "right"
    if has_rest:
        columns |= {"other": "left"} if is_short else {"failed": "right", "unfinished": "right"}
    return Rows(columns, [_group_row(row, comparison, columns) for row in comparison.rows])


def _group_row(row: Row, comparison: Comparison, columns: Mapping[str, Justify]) -> list[str]:
    metric, found = comparison.metric, row.summaries.get(comparison.metric)
    ends = "–"
    if found is not None and not math.isnan(found.low):
        ends = " – ".join(figure(metric, end) for end in interval(metric, found))
    counts = {status: row.group.count(status) for status in ("failed", "unfinished", "running")}
    is_short = "worst – best" in columns
    cells = {
        "group": row.group.label,
        "n": str(found.num if found else len(row.group.counted)),
        "sd": figure(metric, None if found is None else found.sd),
        "95 % interval": ends,
        "best": figure(metric, row.best),
        "worst": figure(metric, row.worst),
        "worst – best": "–" if row.best is None else f"{figure(metric, row.worst)} – {figure(metric, row.best)}",
        "failed": str(counts["failed"]),
        "unfinished": str(counts["unfinished"] + counts["running"]),
        "other": ", ".join(f"{count} {status}" for status, count in counts.items() if count),
    }
    for name in (*comparison.metrics, SECONDS):
        summary = row.summaries.get(name)
        mean = figure(name, None if summary is None else summary.mean)
        cells[heading(name)] = with_interval(name, summary) if is_short and name == metric else mean
    if SECONDS in row.summaries:
        cells["train s"] = f"{row.summaries[SECONDS].mean:,.1f}"
    return [cells[column] for column in columns]


def pair_rows(comparison: Comparison) -> Rows:
    """A row for each pair of groups."""
    mean = "points" if unit(comparison.metric) else "mean"
    columns: dict[str, Justify] = {"group": "left", "minus": "left", "n": "right", mean: "right"}
    corrected = is_corrected(comparison.pairs)
    columns |= {"p": "right", **({"p (Holm)": "right"} if corrected else {}), "seeds needed": "right"}
    return Rows(columns, [_pair_row(pair, comparison.metric, is_corrected=corrected) for pair in comparison.pairs])


def is_corrected(pairs: Sized) -> bool:
    """Whether p-values are corrected by Holm's method: there is more than one test."""
    return len(pairs) > 1


def _pair_row(pair: Pair, metric: str, *, is_corrected: bool) -> list[str]:
    names = [pair.first.group.label, pair.second.group.label]
    if pair.test is None:
        return [*names, "0", *["–"] * (4 if is_corrected else 3)]
    difference = pair.test.difference
    return [
        *names,
        str(difference.num),
        with_interval(metric, difference, sign=True),
        p_text(pair.test.p),
        *([p_text(pair.p)] if is_corrected else []),
        _needed(pair),
    ]


def _needed(pair: Pair) -> str:
    if pair.needed is not None:
        return f"{pair.needed:,}"
    is_unknown = pair.test is None or math.isnan(pair.test.difference.sd) or pair.test.difference.mean == 0
    return "–" if is_unknown else "> 10,000"


def conclusion(comparison: Comparison) -> str:
    """What the comparison says, in at most three sentences."""
    metric, ranked_by = comparison.metric, comparison.ranked_by
    rows = [row for row in comparison.rows if ranked_by in row.summaries]
    if not rows:
        return "No run has finished with " + metric + "."
    best = rows[0]
    if len(rows) == 1:
        return _alone(best, metric)
    is_of_val = ranked_by.startswith("val/")
    how = "on the validation images" if is_of_val else f"by {ranked_by}"
    level = [row.group.label for row in rows if row.summaries[ranked_by].mean == best.summaries[ranked_by].mean]
    superlative = "best" if tells_the_better(ranked_by) else "highest"
    names = f"{listed(level, at_most=3)} are level" if len(level) > 1 else f"{_named(best)} is {superlative}"
    text = f"{names} {how}: {_words(ranked_by, best.summaries[ranked_by])}."
    if not is_of_val and ranked_by.startswith("test/"):
        text += " Not all have validation images, so it is chosen on the test images and looks better than it is."
    pair = next((pair for pair in comparison.pairs if best in (pair.first, pair.second) and _is_tested(pair)), None)
    return f"{text} {_difference(best, pair, metric, ' after Holm' if is_corrected(comparison.pairs) else '')}"


def _is_tested(pair: Pair) -> bool:
    return pair.test is not None and pair.test.difference.num > 1


def _alone(row: Row, metric: str) -> str:
    found = row.summaries.get(metric)
    if found is None:
        return f"No run has {metric}."
    if found.num == 1:
        return f"One run: {metric} {_words(metric, found)}. Run it with several seeds (seeds=5) to know its spread."
    return f"{found.num} runs: {metric} {_words(metric, found)}."


def _words(metric: str, found: Summary) -> str:
    mean = f"{figure(metric, found.mean)} {unit(metric)}".strip()
    if math.isnan(found.low):
        return f"{mean} (n = 1)"
    low, high = interval(metric, found)
    return f"{mean} (95 % interval {figure(metric, low)} to {figure(metric, high)}, n = {found.num})"


def _named(row: Row) -> str:
    return shortened(row.group.label, 200)


def _difference(best: Row, pair: Pair | None, metric: str, corrected: str) -> str:
    """Whether the best group differs from the next that it shares seeds with."""
    if metric not in best.summaries:
        return f"It has no {metric}, so nothing is tested."
    if pair is None or pair.test is None:
        return "No other group shares two seeds with it, so a test needs more seeds for all (seeds=5)."
    other = pair.second if pair.first is best else pair.first
    sign = 1 if pair.first is best else -1
    found = pair.test.difference
    low, high = sorted((sign * found.low, sign * found.high))
    if unit(metric):
        low, high = max(-1.0, low), min(1.0, high)
    mean = sign * found.mean
    is_better = (mean < 0) == less_is_better(metric)
    amount = f"{figure(metric, abs(mean))} {'points' if unit(metric) else ''}".strip()
    words = f"{amount} {'above' if mean > 0 else 'below'}" if mean else "the same as"
    p = p_text(pair.p) if pair.p < 0.001 else f"= {p_text(pair.p)}"
    tested = (
        f"In {metric} {_named(best)} is {words} {_named(other)} "
        f"(95 % interval {figure(metric, low)} to {figure(metric, high)}, p {p}{corrected}, n = {found.num} seeds)"
    )
    if pair.p <= SIGNIFICANT:
        return f"{tested}: a difference is shown{'' if is_better else ', the other way round'}."
    is_of_use = pair.needed is not None and pair.needed > found.num
    needed = f"; {pair.needed:,} seeds would probably show one of this size" if is_of_use else ""
    return f"{tested}: no difference is shown{needed}."
