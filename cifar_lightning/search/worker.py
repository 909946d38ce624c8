"""A process that works on trials until a study has enough.

It reads the settings as a line of JSON from its standard input, which stays open for as long as search.py lives.
"""

import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from cifar_lightning.config.schema import SearchSettings
from cifar_lightning.errors import RunError, UserError, one_line
from cifar_lightning.report.console import say, screens
from cifar_lightning.runs.signals import Stopped, signals
from cifar_lightning.search.space import read_space

_SECONDS_BETWEEN_LOOKS = 0.5
"""While other processes have the last trials, of which one may be killed."""

FIRST_FAILURES = 5
"""If so many trials fail before any other has ended well, the search ends."""


def work(settings: SearchSettings, seeds: Sequence[int], train: Any) -> None:
    """Work on trials until the study has as many as are wanted, and all have ended.

    Args:
        settings: Of the search, with ``n_trials`` decided.
        seeds: Of the runs of a trial.
        train: Trains a run; see ``search.trial``.

    Raises:
        UserError: If no trial can be run.
        RunError: Likewise.
    """
    from cifar_lightning.search.trial import run_trial  # late, as it imports Optuna

    space = read_space(settings.space, settings.overrides)
    study = open_study(settings)
    assert settings.n_trials is not None
    while True:
        refuse_hopeless(study)
        with ExitStack() as stack:
            claim = study.claim(stack, settings.n_trials)
            if claim is not None:
                named = " ".join(f"{key}={text}" for key, text in claim.texts.items())
                if claim.is_resumed:
                    say(f"trial {claim.number}  {named}  resumed")
                outcome = run_trial(claim, study, space, seeds, train)
                say(f"trial {claim.number}  {named}  {outcome}")
        if claim is None and not study.is_busy():
            return
        if claim is None:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        else:
            _free_memory()


def open_study(settings: SearchSettings) -> Any:
    """The study of a search; see ``search.study.Study``."""
    from cifar_lightning.search.study import Study  # late, as it imports Optuna

    assert settings.study is not None
    return Study(
        Path(settings.study),
        read_space(settings.space, settings.overrides),
        sampler=settings.sampler,
        sampler_seed=settings.sampler_seed,
        pruner=settings.pruner,
    )


def refuse_hopeless(study: Any) -> None:
    """Raise RunError where the first trials have all failed: the fault is not that of their values."""
    from cifar_lightning.search.study import REASON

    trials = study.trials()
    failed = [trial for trial in trials if trial.state.name == "FAIL"]
    if len(failed) >= FIRST_FAILURES and all(trial.state.name in ("FAIL", "RUNNING") for trial in trials):
        raise RunError(
            f"the first {len(failed)} trials have all failed, the last one with: {failed[-1].user_attrs.get(REASON)}; "
            "mend that, and search in another folder"
        )


def _free_memory() -> None:
    """Give back what a failed run may still hold of a GPU."""
    import gc

    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def _end_with_parent() -> None:
    """Wait for the end of search.py, and stop then as by a signal."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def message(settings: SearchSettings, seeds: Sequence[int]) -> bytes:
    """What a worker reads."""
    return (json.dumps({"settings": dataclasses.asdict(settings), "seeds": list(seeds)}) + "\n").encode()


def ready() -> None:
    """Have a signal end the process at once, before anything else is imported: there is nothing to save yet."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, frame: os._exit(130 if signum == signal.SIGINT else 143))


def main(train: Any) -> NoReturn:
    """Work as the standard input says, and exit.

    Args:
        train: Trains a run.
    """
    asked = json.loads(sys.stdin.buffer.readline())
    settings = SearchSettings(**{**asked["settings"], "overrides": tuple(asked["settings"]["overrides"])})
    code = 0
    with screens():
        try:
            with signals:
                threading.Thread(target=_end_with_parent, daemon=True).start()
                work(settings, asked["seeds"], train)
        except (UserError, RunError) as error:
            say(f"error: {one_line(error)}", "stderr")
            code = 2 if isinstance(error, UserError) else 1
        except Stopped as stopped:
            code = stopped.exit_code
    os._exit(code)  # at an orderly end Python would wait for the thread, which reads
