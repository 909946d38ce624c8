"""The runs in folders, patterns and files: what each was asked for, and what came of it."""

import functools
import glob
import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cifar_lightning.config.overrides import quoted
from cifar_lightning.config.recipe import recipe, seed_of
from cifar_lightning.config.resolve import flattened
from cifar_lightning.config.schema import compose, run_folder
from cifar_lightning.errors import UserError, one_line
from cifar_lightning.locks import is_held
from cifar_lightning.report.comparison import Run, Status
from cifar_lightning.runs.failure import FAILED, failure_in
from cifar_lightning.runs.folder import CONFIG, LOCK, METRICS, OVERRIDES, below, names_in
from cifar_lightning.runs.metrics_file import read_metrics
from cifar_lightning.runs.sweep import recorded
from cifar_lightning.typehints import fits

_MAX_NUMBER = 1e100
"""Above it the square of a number, which a deviation is made of, may not be one any more."""


@dataclass
class Found:
    """Runs, and what was left out.

    Attributes:
        runs: In the order in which they were found, each once.
        left_out: Files that are no metrics of a run, each with what is wrong with it.
        num_evaluations: How many metrics of evaluations were passed over.
    """

    runs: list[Run] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    num_evaluations: int = 0


def find_runs(places: Sequence[str]) -> Found:
    """All runs in some places, each of which may come from anyone.

    Args:
        places: Folders of runs, of sweeps, or of folders of these; files of metrics; patterns of all these.

    Raises:
        UserError: If one of them is not there.
    """
    found, seen = Found(), set()
    for place in places:
        for path in _matches(place):
            for one in _runs_in(path, found) if path.is_dir() else [path]:
                is_run = one.name == METRICS and not one.is_dir() and (one.parent / CONFIG).exists()
                folder = one.parent if is_run else one
                if (real := os.path.realpath(folder)) not in seen:
                    seen.add(real)
                    _add(folder, found)
    return found


def _matches(place: str) -> list[Path]:
    if os.path.lexists(place):
        return [Path(place)]
    matches = sorted(glob.glob(place, recursive=True), key=_in_order) if glob.has_magic(place) else []
    # Of a pattern such as sweep/* the files that belong to the sweep are not meant.
    matches = [path for path in matches if os.path.isdir(path) or path.endswith(".json")]
    if not matches:
        kind = "pattern matches nothing" if glob.has_magic(place) else "there is no such file or folder"
        raise UserError(f"runs={place}: {kind}; give a folder of runs, such as runs=logs/sweep, or a metrics.json")
    return [Path(path) for path in matches]


def _in_order(name: str) -> list[Any]:
    """For sorting: job 10 comes after job 9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"[0-9]{1,18}|[^0-9]+", name)]


def _runs_in(folder: Path, found: Found) -> Iterator[Path]:
    """Folders of runs, without those of evaluations within them; links are not followed."""
    pending = [folder]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(folder) as entries:
                names = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        except OSError as error:
            found.left_out.append((str(folder), one_line(error)))
            continue
        if _holds_run(folder, names):
            yield folder
        else:
            below = [name for name, is_folder in names.items() if is_folder and not name.startswith(".")]
            pending += [folder / name for name in sorted(below, key=_in_order, reverse=True)]


def _holds_run(folder: Path, names: Container[str]) -> bool:
    is_started = CONFIG.parts[0] in names and any((folder / one).exists() for one in (CONFIG, FAILED))
    return METRICS in names or is_started


def _add(path: Path, found: Found) -> None:
    try:
        run = _read(path)
    except (OSError, ValueError) as error:
        found.left_out.append((str(path), one_line(error)))
        return
    if run is None:
        found.num_evaluations += 1
    else:
        found.runs.append(run)


def _read(path: Path) -> Run | None:
    """A run; None for the numbers of an evaluation.

    Raises:
        OSError: If the file of its metrics cannot be read.
        ValueError: If that is none.
    """
    is_folder = path.is_dir()
    try:
        metrics = read_metrics(path / METRICS if is_folder else path)
    except FileNotFoundError:
        return _unfinished(path)
    if "ckpt" in metrics and "steps" not in metrics:
        return None
    overrides: Any = metrics.get("overrides")
    if not fits(overrides, list[str]):
        raise ValueError("its overrides are no list of texts")
    if not overrides and is_folder and not (path / OVERRIDES).exists():
        overrides = _from_python(path)
    if not fits(seed := metrics.get("seed"), int):
        raise ValueError("its seed is no whole number")
    record = flattened({key: value for key, value in metrics.items() if key != "overrides"})
    _check_numbers(record)
    return Run(str(path), recipe(overrides), seed, "finished", record)


def _check_numbers(record: Mapping[str, Any]) -> None:
    for name, value in record.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            if "/" in name and name.removesuffix("_tta").endswith("acc") and not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value:g}")
            if not abs(value) <= _MAX_NUMBER:
                raise ValueError(f"{name} is no number that can be compared")


def _unfinished(folder: Path) -> Run:
    if not folder.is_dir():
        raise ValueError("it leads to nothing")
    overrides, failure = recorded(folder / OVERRIDES), failure_in(folder)
    if not fits(overrides, list[str]):
        overrides = failure[0] if failure else _from_python(folder)
    status: Status = "running" if is_held(folder / LOCK) else "failed" if failure else "unfinished"
    return Run(str(folder), recipe(overrides), seed_of(overrides), status, reason=failure[1] if failure else "")


def _from_python(folder: Path) -> list[str]:
    """What the command line would have been for a run that was started from Python, as its config tells."""
    config = recorded(folder / CONFIG)
    if not isinstance(config, dict):
        return []
    own, usual = flattened(config), _usual()
    changed = [key for key in own if key not in usual or own[key] != usual[key]]
    absent = [key for key in usual if key not in own and not any(key.startswith(f"{other}.") for other in changed)]
    typed = [f"{key}={own[key] if isinstance(own[key], str) else quoted(own[key])}" for key in changed]
    return [*typed, *(f"{key}=" for key in absent)]


@functools.cache
def _usual() -> dict[str, Any]:
    """The config of train.py without overrides, by dotted key."""
    return flattened(OmegaConf.to_container(compose()))


def comparison_folder(places: Sequence[str]) -> str:
    """Where a comparison is written: into the folder that is compared, where it is one and no run, else below logs/.

    Raises:
        UserError: If a link leads from there to elsewhere.
    """
    folder = Path(places[0])
    if len(places) == 1 and folder.is_dir() and not _holds_run(folder, set(names_in(folder))):
        return below(folder, "compare")
    return run_folder("compare")
