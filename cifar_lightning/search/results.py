"""What a search has found, as plain values: for the console, the CSV file and the page."""

import math
import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from cifar_lightning.report.cells import cell, csv_file
from cifar_lightning.report.comparison_text import Rows
from cifar_lightning.report.tables import Justify, duration, shown
from cifar_lightning.search.space import Space
from cifar_lightning.search.study import REASON, Study

MIN_FOR_IMPORTANCE = 4
"""Fewest complete trials by which the importance of keys is told: by fewer it would be noise alone."""

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}


@dataclass(frozen=True)
class Trial:
    """A trial.

    Attributes:
        number: From 0, and the name of its folder.
        state: ``complete``, ``pruned``, ``failed`` or ``running``.
        acc: On the validation images, in [0, 1]: at the end, or when it was pruned; None where it has none.
        epochs: That have been validated in its first run.
        seconds: From its start to its end, the time in which the search was stopped included; None while it runs.
        reason: Why it is not complete.
        texts: Its values as they are typed, by key.
    """

    number: int
    state: str
    acc: float | None
    epochs: int
    seconds: float | None
    reason: str
    texts: Mapping[str, str]

    @property
    def label(self) -> str:
        """Its values on a line."""
        return " ".join(f"{key}={text}" for key, text in self.texts.items())


@dataclass(frozen=True)
class Results:
    """What a search has found.

    Attributes:
        trials: In the order of numbers.
        best: The complete trial with the highest accuracy, the first of several; None if there is none.
        importances: Of each key for the accuracy, in [0, 1], the highest first; empty where that cannot be told.
        space: What was searched.
        command: A line for the shell that trains as the best trial did; empty without one.
    """

    trials: Sequence[Trial]
    best: Trial | None
    importances: Mapping[str, float]
    space: Space
    command: str

    def count(self, state: str) -> int:
        """How many trials have that state."""
        return sum(trial.state == state for trial in self.trials)


def results(study: Study, space: Space) -> Results:
    """What a study holds now."""
    trials = [_trial(one, space) for one in study.trials()]
    complete = [trial for trial in trials if trial.state == "complete" and trial.acc is not None]
    best = max(complete, key=lambda trial: (trial.acc or 0.0, -trial.number), default=None)
    command = "" if best is None else command_of(space, best)
    return Results(trials, best, _importances(study.optuna, len(complete)), space, command)


def command_of(space: Space, trial: Trial) -> str:
    """What is typed into a POSIX shell to train as a trial did."""
    return shlex.join(["python", "train.py", *space.overrides(trial.texts)])


def _trial(one: FrozenTrial, space: Space) -> Trial:
    known = {parameter.key: parameter for parameter in space.parameters}
    texts = {key: known[key].text(value) for key, value in sorted(one.params.items()) if key in known}
    started, ended = one.datetime_start, one.datetime_complete
    return Trial(
        number=one.number,
        state=_STATES.get(one.state, "running"),
        acc=_acc(one),
        epochs=len(one.intermediate_values),
        seconds=_seconds(started, ended),
        reason=str(one.user_attrs.get(REASON, "")),
        texts=texts,
    )


def _acc(one: FrozenTrial) -> float | None:
    value = one.value if one.state in (TrialState.COMPLETE, TrialState.PRUNED) else None
    return value if value is not None and math.isfinite(value) else None


def _seconds(started: datetime | None, ended: datetime | None) -> float | None:
    return (ended - started).total_seconds() if started is not None and ended is not None else None


def _importances(study: optuna.Study, num_complete: int) -> dict[str, float]:
    if num_complete < MIN_FOR_IMPORTANCE:
        return {}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "(?s).*Parameter importances will be equal")
        try:
            found = optuna.importance.get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
        except (ValueError, RuntimeError, ZeroDivisionError, UserWarning):  # such as where all accuracies are the same
            return {}
    return dict(found) if all(math.isfinite(value) for value in found.values()) else {}


def rows(found: Results, *, at_most: int | None = None) -> Rows:
    """A row for each trial, the best first, then pruned, running and failed ones.

    Args:
        found: What is shown.
        at_most: Most rows, without reasons, for the console; None for all.
    """
    order = ("complete", "pruned", "running", "failed")
    ranked = sorted(found.trials, key=lambda one: (order.index(one.state), -(one.acc or 0.0), one.number))
    keys = [parameter.key for parameter in found.space.parameters]
    columns: dict[str, Justify] = {"trial": "right", "val/acc": "right", **{key: "right" for key in keys}}
    columns |= {"time": "right", "state": "left"}
    return Rows(columns, [_row(trial, keys, is_short=at_most is not None) for trial in ranked[:at_most]])


def _row(trial: Trial, keys: Sequence[str], *, is_short: bool) -> list[str]:
    acc = "–" if trial.acc is None else shown("acc", trial.acc)
    time = "–" if trial.seconds is None else duration(trial.seconds)
    state = (
        trial.state
        if is_short or not trial.reason
        else trial.reason
        if trial.state == "pruned"
        else f"failed: {trial.reason}"
    )
    return [str(trial.number), acc, *(trial.texts.get(key, "–") for key in keys), time, state]


def trials_csv(found: Results) -> bytes:
    """A line for each trial, in the order of numbers; accuracies in [0, 1]."""
    keys = [parameter.key for parameter in found.space.parameters]
    lines: list[list[Any]] = [["trial", "state", "val/acc", "epochs", "seconds", "reason", *map(cell, keys)]]
    for trial in found.trials:
        facts: list[Any] = [trial.number, trial.state, trial.acc, trial.epochs, trial.seconds, cell(trial.reason)]
        lines.append(facts + [cell(trial.texts.get(key, "")) for key in keys])
    return csv_file(lines)


def conclusion(found: Results) -> str:
    """What was found, in a few sentences."""
    counts = ", ".join(
        f"{found.count(state)} {state}" for state in ("complete", "pruned", "failed", "running") if found.count(state)
    )
    if not found.trials:
        return "There is no trial yet."
    if found.best is None or found.best.acc is None:
        return f"No trial is complete ({counts})."
    acc = shown("acc", found.best.acc)
    return f"Trial {found.best.number} is best on the validation images: {acc} with {found.best.label} ({counts})."
