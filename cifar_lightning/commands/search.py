"""``search(cfg)``: the function behind search.py. Trials are runs of ``train``, compared by validation accuracy."""

import dataclasses
import logging
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from cifar_lightning.checkpoint.write import write_durably
from cifar_lightning.config.invocation import FROM_PYTHON, Invocation
from cifar_lightning.config.schema import SearchSettings
from cifar_lightning.config.searching import resolve_search
from cifar_lightning.cores import num_cores
from cifar_lightning.errors import RunError, UserError, counted, needs_extra
from cifar_lightning.report.console import on_screen
from cifar_lightning.report.tables import log_table, relative
from cifar_lightning.runs.signals import Stopped
from cifar_lightning.search.space import Space, read_space

if TYPE_CHECKING:
    from cifar_lightning.search.results import Results
    from cifar_lightning.search.study import Study

log = logging.getLogger(__name__)

WORKER = """
from cifar_lightning.search import worker
worker.ready()
from cifar_lightning.commands.train import train
worker.main(train)
"""
"""What a worker process runs."""

_NUM_TRIALS = 20
_MAX_SHOWN = 10
"""Most trials of the table on the console."""


def search(cfg: DictConfig, invocation: Invocation = FROM_PYTHON) -> "Results":
    """Search as configured, or continue a search; return all trials.

    Each trial is a run of ``train`` in a folder of the study's. The study's folder gets trials.csv and report.html.

    Args:
        cfg: As ``config.schema.compose(..., config_name="search")`` or the command line makes it; it is not changed.
        invocation: How the command was called.

    Raises:
        UserError: If a key, a value or a space is wrong, or the folder holds something else.
        RunError: If no trial could be completed, or not all were run.
    """
    settings = resolve_search(cfg)
    with needs_extra("search"):
        from cifar_lightning.search.study import Study  # late, as they import Optuna and torch
    from cifar_lightning.search.check import check_space
    from cifar_lightning.search.record import begin
    from cifar_lightning.search.worker import open_study

    assert settings.study is not None
    folder = Path(settings.study)
    space = read_space(settings.space, settings.overrides)
    settings = dataclasses.replace(settings, n_trials=_num_trials(settings, space))
    with on_screen():
        cfg = check_space(space, folder)
        seed = int(cfg.seed)
        begin(settings, space, cfg)
        _note_points(settings, space)
        study: Study = open_study(settings)
        try:
            code = _work(settings, study, seed)
        except Stopped as stopped:
            stopped.advice = f"; {_unfinished(settings, study)}"
            raise
        found = _report(settings, study, space)
    if code:
        raise SystemExit(code)  # a worker has said why
    if _num_done(study) < (settings.n_trials or 0):  # as something outside has stopped the workers
        raise RunError(_unfinished(settings, study))
    if found.best is None:
        raise RunError(f"no trial is complete: {folder / 'trials.csv'} says why")
    return found


def _num_done(study: "Study") -> int:
    """How many trials have ended, however they did."""
    return sum(trial.state.is_finished() for trial in study.trials())


def _unfinished(settings: SearchSettings, study: "Study") -> str:
    return f"{_num_done(study):,} of {settings.n_trials:,} trials are done, and the same command continues"


def _num_trials(settings: SearchSettings, space: Space) -> int:
    """How many trials are wanted.

    Raises:
        UserError: If a grid is asked for that has no end, or not as many points.
    """
    points = space.num_points
    if settings.sampler != "grid":
        return settings.n_trials or min(_NUM_TRIALS, points or _NUM_TRIALS)
    if points is None:
        key = next(parameter.key for parameter in space.parameters if not parameter.texts)
        raise UserError(f"{key}: a grid has no intervals; write choice(a,b,c) or range(a,b), or sampler=tpe")
    if settings.n_trials is not None and settings.n_trials > points:
        raise UserError(f"n_trials={settings.n_trials}: the grid has {points:,} points; leave n_trials out")
    return settings.n_trials or points


def _note_points(settings: SearchSettings, space: Space) -> None:
    """Say of a space with few points that a sampler may try one again."""
    points, wanted = space.num_points, settings.n_trials or 0
    if settings.sampler != "grid" and points is not None and points <= wanted:
        has = counted(points, "point")
        log.info("note      the space has %s: sampler=grid tries each once, %s may repeat some", has, settings.sampler)


def _work(settings: SearchSettings, study: "Study", seed: int) -> int:
    """Have workers do what is left to do; gives the code of one that has ended with an error, else 0."""
    from cifar_lightning.search.supervise import shares, supervise
    from cifar_lightning.search.worker import message

    assert settings.n_trials is not None
    trials = study.trials()
    done = _num_done(study)
    log.info("study     %s: %s of %s trials are done", relative(study.folder), f"{done:,}", f"{settings.n_trials:,}")
    log.info("objective val/acc, on validation images alone: the test images choose nothing")
    left = max(0, settings.n_trials - done)
    if left == 0 and done == len(trials):
        return 0
    num = max(1, min(settings.n_workers, left))
    environments = shares(num, cores=num_cores(), gpus=_gpus() if num > 1 else [])
    seeds = [seed + i for i in range(settings.seeds)]
    asked = message(settings, seeds, num_failed=sum(trial.state.name == "FAIL" for trial in trials))
    return supervise(WORKER, asked, environments, study.note_death)


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    num = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:num] if named else [str(i) for i in range(num)]


def _report(settings: SearchSettings, study: "Study", space: Space) -> "Results":
    """Show what was found, and write it into the study's folder."""
    from cifar_lightning.search.page import page
    from cifar_lightning.search.results import conclusion, results, rows, trials_csv

    found = results(study, space)
    shown = rows(found, at_most=_MAX_SHOWN)
    if shown.rows:
        log_table(f"{counted(len(found.trials), 'trial')}, the best first", shown.rows, columns=shown.columns)
    if len(found.trials) > _MAX_SHOWN:
        log.info("%s in trials.csv", counted(len(found.trials) - _MAX_SHOWN, "more trial"))
    log.info("result    %s", conclusion(found))
    if found.command:
        log.info("train     %s", found.command)
    write_durably(study.folder / "trials.csv", trials_csv(found))
    title = f"Search in {study.folder.name}: {counted(len(found.trials), 'trial')}"
    write_durably(study.folder / "report.html", page(found, title, _again(settings)).encode())
    log.info("page      %s", relative(study.folder / "report.html"))
    return found


def _again(settings: SearchSettings) -> str:
    own = [
        f"{key}={value}"
        for key in ("study", "n_trials", "n_workers", "seeds", "sampler", "sampler_seed", "pruner")
        if (value := getattr(settings, key)) is not None
    ]
    spaces = [f"{key}={text}" for key, text in settings.space.items()]
    return shlex.join(["python", "search.py", *own, *spaces, *settings.overrides])
