"""A comparison as files: compare.md, compare.html, compare.csv, pairs.csv and runs.csv."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl

from cifar_lightning.errors import printable
from cifar_lightning.report import html
from cifar_lightning.report.cells import cell, csv_file
from cifar_lightning.report.comparison import SECONDS, Comparison, Row
from cifar_lightning.report.comparison_plot import MAX_GROUPS, Colors, runs_plot
from cifar_lightning.report.comparison_text import MAX_ROWS, Rows, conclusion, figure, group_rows, heading, pair_rows

ABOUT = (
    "± and intervals are 95 % intervals of the mean over seeds (Student's t); sd is the sample standard deviation.",
    "Differences are over the seeds that both groups have; p is of a paired t-test, corrected by Holm's method where "
    "several pairs are shown.",
    "Seeds needed: how many would show a difference of this size at p < 0.05, corrected for as many pairs, with "
    "probability 0.8.",
)
"""How the figures are made."""


@dataclass(frozen=True)
class Context:
    """What is said beside the figures.

    Attributes:
        title: What is compared.
        shared: What all runs were asked for.
        notes: What a reader must know.
        command: What makes the comparison again.
    """

    title: str
    shared: Sequence[str]
    notes: Sequence[str]
    command: str


def markdown(comparison: Comparison, context: Context) -> str:
    """The comparison as Markdown."""
    parts = [
        f"# {_escaped(context.title)}",
        _escaped(conclusion(comparison)),
        _table(group_rows(comparison), "compare.csv"),
    ]
    if comparison.pairs:
        parts += [f"Differences in {_escaped(comparison.metric)}:", _table(pair_rows(comparison), "pairs.csv")]
    if context.shared:
        parts.append(f"All runs: {_escaped(' '.join(context.shared))}")
    parts += [f"- {_escaped(note)}" for note in context.notes]
    parts += [" ".join(ABOUT), f"Made by: {_escaped(context.command)}"]
    return "\n\n".join(parts) + "\n"


def _table(rows: Rows, file: str) -> str:
    lines = [list(rows.columns), [":---" if side == "left" else "---:" for side in rows.columns.values()]]
    shown = rows.rows[:MAX_ROWS]
    body = [[_escaped(text) for text in row] for row in shown]
    table = "\n".join("| " + " | ".join(line) + " |" for line in [*lines, *body])
    if len(shown) == len(rows.rows):
        return table
    return f"{table}\n\nThe first {len(shown):,} of {len(rows.rows):,} rows; {file} has all."


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is: names of folders and overrides are anybody's."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|~$!#])", r"\\\1", text)


def page(comparison: Comparison, context: Context) -> str:
    """The comparison as a page."""
    drawn = [row for row in comparison.rows if comparison.metric in row.summaries]
    chart = None
    if drawn:
        with mpl.rc_context(html.STYLE):
            plot = runs_plot(comparison, Colors(html.INK, html.QUIET, html.ACCENT))
        chart = html.svg(plot, f"{comparison.metric} of each run, and means with 95 % intervals, for each group")
    return html.page(
        "comparison.html",
        title=context.title,
        conclusion=conclusion(comparison),
        chart=chart,
        undrawn=max(0, len(drawn) - MAX_GROUPS),
        metric=comparison.metric,
        groups=group_rows(comparison).for_page(),
        pairs=pair_rows(comparison).for_page(),
        runs=run_rows(comparison).for_page(),
        shared=context.shared,
        notes=context.notes,
        about=ABOUT,
        command=context.command,
    )


def run_rows(comparison: Comparison) -> Rows:
    """A row for each run."""
    names = [*comparison.metrics, SECONDS]
    columns: Any = {"group": "left", "seed": "right", **{heading(name): "right" for name in names}}
    columns |= {"status": "left", "folder": "left"}
    rows = []
    for row in comparison.rows:
        for run in row.group.runs:
            status: str = run.status
            if run.status == "finished" and not row.group.counts(run):
                status = "not counted: its seed stands twice"
            elif run.reason:
                status = f"{status}: {run.reason}"
            seed = "–" if run.seed is None else str(run.seed)
            numbers = [figure(name, run.number(name)) for name in names]
            rows.append([row.group.label, seed, *numbers, status, run.place])
    return Rows(columns, rows)


def groups_csv(comparison: Comparison) -> bytes:
    """A line for each group."""
    names = [*comparison.metrics, SECONDS]
    columns = [f"{name} {part}" for name in names for part in ("n", "mean", "sd", "low", "high")]
    lines: list[list[Any]] = [
        ["group", *columns, "best", "worst", "finished", "failed", "unfinished", "running"],
    ]
    for row in comparison.rows:
        counts = [row.group.count(status) for status in ("finished", "failed", "unfinished", "running")]
        lines.append([cell(row.group.label), *_statistics(row, names), row.best, row.worst, *counts])
    return csv_file(lines)


def _statistics(row: Row, names: Iterable[str]) -> list[float | None]:
    values: list[float | None] = []
    for name in names:
        found = row.summaries.get(name)
        values += [None] * 5 if found is None else [found.num, found.mean, found.sd, found.low, found.high]
    return values


def pairs_csv(comparison: Comparison) -> bytes:
    """A line for each pair of groups."""
    ends = ["n", "first minus second", "sd", "low", "high", "p", "p_holm", "seeds_needed"]
    lines: list[list[Any]] = [["metric", "first", "second", *ends]]
    for pair in comparison.pairs:
        names = [comparison.metric, cell(pair.first.group.label), cell(pair.second.group.label)]
        if pair.test is None:
            lines.append([*names, 0, *[None] * 7])
        else:
            found = pair.test.difference
            numbers = [found.num, found.mean, found.sd, found.low, found.high, pair.test.p, pair.p]
            lines.append([*names, *numbers, pair.needed])
    return csv_file(lines)


def runs_csv(comparison: Comparison) -> bytes:
    """A line for each run, with its overrides."""
    names = [*comparison.metrics, SECONDS]
    keys = sorted({key for row in comparison.rows for run in row.group.runs for key in run.overrides})
    lines: list[list[Any]] = [["group", "seed", *names, "status", "counted", "reason", "folder", *map(cell, keys)]]
    for row in comparison.rows:
        for run in row.group.runs:
            facts = [run.status, int(row.group.counts(run)), cell(run.reason), cell(run.place)]
            typed = [cell(run.overrides[key].spelled) if key in run.overrides else "" for key in keys]
            lines.append([cell(row.group.label), run.seed, *map(run.number, names), *facts, *typed])
    return csv_file(lines)
