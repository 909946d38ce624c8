"""``compare(cfg)``: the function behind compare.py. Runs are compared by their files alone, checkpoints on images."""

import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from cifar_lightning.checkpoint.write import write_durably
from cifar_lightning.config.comparing import CompareSettings, resolve_checkpoints, resolve_comparison
from cifar_lightning.config.invocation import FROM_PYTHON, Invocation
from cifar_lightning.config.overrides import argument
from cifar_lightning.config.schema import run_folder
from cifar_lightning.errors import UserError, counted, listed, nearest, one_line, printable, shortened
from cifar_lightning.report.comparison import Comparison, compared
from cifar_lightning.report.comparison_files import Context, groups_csv, markdown, page, pairs_csv, runs_csv
from cifar_lightning.report.comparison_text import conclusion, group_rows, pair_rows
from cifar_lightning.report.console import on_screen
from cifar_lightning.report.disagreement import Disagreement
from cifar_lightning.report.tables import log_table, relative
from cifar_lightning.runs.folder import claimed, refuse_used
from cifar_lightning.runs.found import Found, comparison_folder, find_runs
from cifar_lightning.runs.grouping import FOLDER, Grouping, group_runs

log = logging.getLogger(__name__)

_METRIC = "test/acc"
"""What is compared where nothing else is asked for, as in conf/compare.yaml."""

_MAX_SHOWN = 20
"""Most rows of a table on the console."""


def compare(cfg: DictConfig, invocation: Invocation = FROM_PYTHON) -> Comparison | Disagreement:
    """Compare runs, grouped by their overrides; or checkpoints on the same images, where ``ckpt`` is given.

    Of runs it writes compare.md, compare.html, compare.csv, pairs.csv and runs.csv, and for TensorBoard the same as
    text and plot. Of checkpoints it writes compare.html and disagreements.csv.

    Args:
        cfg: As ``config.schema.compose(..., config_name="compare")`` or the command line makes it; it is not changed.
        invocation: How the command was called.

    Raises:
        UserError: If there are no runs, or the metric or the baseline is not there; or a checkpoint cannot be used.
        RunError: If a file cannot be written.
    """
    if cfg.ckpt is not None:
        return _compare_checkpoints(cfg, invocation)
    if cfg.runs is None:
        raise UserError("runs=FOLDER is missing: a folder of runs, such as runs=logs/sweep; or ckpt=[a.ckpt,b.ckpt]")
    settings = resolve_comparison(cfg)
    with on_screen():
        found = find_runs(settings.runs)
        if not found.runs:
            raise UserError(f"runs={listed(settings.runs)}: no run is there{_left_out(found)}")
        grouping = group_runs(found.runs, settings.by)
        _check_metric(found, settings.metric)
        _check_by(found, settings.by)
        baseline = None if settings.baseline is None else grouping.find(settings.baseline)
        if baseline is not None and not baseline.values(settings.metric):
            raise UserError(
                f"baseline={shortened(baseline.label, 80)}: it has no {settings.metric}; name another group or metric"
            )
        comparison = compared(grouping.groups, settings.metric, baseline)
        folder = Path(settings.output_dir or comparison_folder(settings.runs))
        refuse_used(folder, is_for_run=False)
        _report(folder, comparison, _context(_command(settings), found, grouping, comparison))
    return comparison


def _compare_checkpoints(cfg: DictConfig, invocation: Invocation) -> Disagreement:
    from cifar_lightning.engine.contenders import compare_checkpoints  # late, as it imports Lightning

    settings = resolve_checkpoints(cfg)
    folder = Path(settings[0].output_dir or run_folder("compare"))
    refuse_used(folder, is_for_run=False)
    with on_screen(), claimed(folder):
        return compare_checkpoints(settings, folder, invocation)


def compare_sweep(folder: Path) -> None:
    """Compare the runs of a sweep that has just ended, if there are two and one has finished.

    Args:
        folder: That of the sweep.
    """
    found = find_runs([str(folder)])
    if len(found.runs) < 2 or not any(run.number(_METRIC) is not None for run in found.runs):
        return
    grouping = group_runs(found.runs)
    with on_screen():
        comparison = compared(grouping.groups, _METRIC)
        context = _context(f"python compare.py {argument('runs', folder)}", found, grouping, comparison)
        _report(Path(comparison_folder([str(folder)])), comparison, context)


def _left_out(found: Found) -> str:
    named = [f"{path}: {why}" for path, why in found.left_out]
    if found.num_evaluations:
        named.append("evaluations of a checkpoint, which are no runs")
    return f" ({listed(named)})" if named else ""


def _check_metric(found: Found, metric: str) -> None:
    finished = [run for run in found.runs if run.status == "finished"]
    if finished and all(run.number(metric) is None for run in finished):
        names = {name for run in finished[:100] for name in run.record if run.number(name) is not None}
        raise UserError(f"metric={printable(metric)}: no run has a number of that name{nearest(metric, names)}")


def _check_by(found: Found, by: Sequence[str]) -> None:
    names = {FOLDER, *(name for run in found.runs for name in run.record)}
    for key in by:
        if key not in names and any(run.status == "finished" for run in found.runs):
            raise UserError(f"by={printable(key)}: no run has a key of that name{nearest(key, names)}")


def _command(settings: CompareSettings) -> str:
    """What is typed into a POSIX shell to compare the same again."""
    typed = [argument("runs", settings.runs[0] if len(settings.runs) == 1 else settings.runs)]
    if settings.metric != _METRIC:
        typed.append(argument("metric", settings.metric))
    if settings.baseline is not None:
        typed.append(argument("baseline", settings.baseline))
    if settings.by:
        typed.append(argument("by", settings.by[0] if len(settings.by) == 1 else settings.by))
    return " ".join(["python compare.py", *typed])


def _context(command: str, found: Found, grouping: Grouping, comparison: Comparison) -> Context:
    notes = [*grouping.notes, *_lacking(comparison), *(f"left out: {path}: {why}" for path, why in found.left_out)]
    if found.num_evaluations:
        evaluations = counted(found.num_evaluations, "evaluation of a checkpoint", "evaluations of checkpoints")
        notes.append(f"left out: {evaluations}")
    finished = [run for run in found.runs if run.status == "finished"]
    for split, words in (("test", "tested"), ("val", "validated")):
        keys = ("data", f"fingerprint.{split}", f"num_{split}_images")
        is_used = split == "test" or "val" in {name.partition("/")[0] for name in comparison.metrics}
        if is_used and any(len({run.record.get(key) for run in finished} - {None}) > 1 for key in keys):
            notes.append(f"The runs were {words} on different images: a difference may be one of the images.")
    names = list(dict.fromkeys(str(run.record["name"]) for run in finished if "name" in run.record))
    what = f"Comparison of {listed(names, at_most=3)}" if names else "Comparison"
    title = f"{what}: {counted(len(found.runs), 'run')}, {counted(len(grouping.groups), 'group')}"
    return Context(title, grouping.shared, notes, command)


def _lacking(comparison: Comparison) -> list[str]:
    """Of which groups some finished runs have no figure of the compared metric, so that they are not in its mean."""
    metric, notes = comparison.metric, []
    for group in (row.group for row in comparison.rows):
        if lacking := len(group.counted) - len(group.values(metric)):
            runs = counted(len(group.counted), "finished run")
            notes.append(f"{group.label}: {lacking} of {runs} {'has' if lacking == 1 else 'have'} no {metric}")
    return notes


def _report(folder: Path, comparison: Comparison, context: Context) -> None:
    """Show the comparison, and write it into a folder in place of an earlier one."""
    with claimed(folder):
        _show(comparison, context)
        text = markdown(comparison, context)
        write_durably(folder / "compare.csv", groups_csv(comparison))
        write_durably(folder / "pairs.csv", pairs_csv(comparison))
        write_durably(folder / "runs.csv", runs_csv(comparison))
        write_durably(folder / "compare.md", text.encode())
        write_durably(folder / "compare.html", page(comparison, context).encode())
        _write_board(folder, comparison, text)
    log.info("page      %s", relative(folder / "compare.html"))
    log.info("tables    %s", relative(folder / "compare.md"))


def _write_board(folder: Path, comparison: Comparison, text: str) -> None:
    from cifar_lightning.report.comparison_board import write_board  # late, as it imports TensorBoard

    try:
        write_board(folder, comparison, text)
    except OSError as error:
        log.warning("TensorBoard has no comparison: %s", one_line(error))


def _show(comparison: Comparison, context: Context) -> None:
    groups, pairs = group_rows(comparison, is_short=True), pair_rows(comparison)
    log_table(context.title, groups.rows[:_MAX_SHOWN], columns=groups.columns)
    if len(groups.rows) > _MAX_SHOWN:
        log.info("%s in compare.csv", counted(len(groups.rows) - _MAX_SHOWN, "more group"))
    if pairs.rows:
        log_table(f"differences in {comparison.metric}", pairs.rows[:_MAX_SHOWN], columns=pairs.columns)
    if len(pairs.rows) > _MAX_SHOWN:
        log.info("%s in pairs.csv", counted(len(pairs.rows) - _MAX_SHOWN, "more difference"))
    log.info("note      ± is the 95 % interval of the mean over seeds")
    for note in context.notes[:_MAX_SHOWN]:
        log.info("note      %s", note)
    log.info("result    %s", conclusion(comparison))
