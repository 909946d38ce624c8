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
from cifar_lightning.errors import RunError, UserError, in_words
from cifar_lightning.report.console import say, screens
from cifar_lightning.runs.signals import Stopped, signals
from cifar_lightning.search.space import read_space

_SECONDS_BETWEEN_LOOKS = 0.5
"""While other processes have the last trials, of which one may be killed."""

FIRST_FAILURES = 5
"""If so many trials fail, and no other one has got anywhere, the search ends."""


def work(settings: SearchSettings, seeds: Sequence[int], train: Any, *, num_failed: int = 0) -> None:
    """Work on trials until the study has as many as are wanted, and all have ended.

    Args:
        settings: Of the search, with ``n_trials`` decided.
        seeds: Of the runs of a trial.
        train: Trains a run; see ``search.trial``.
        num_failed: Trials that had failed before the search was started; see ``may_ask``.

    Raises:
        UserError: If no trial can be run.
        RunError: Likewise.
    """
    from cifar_lightning.search.trial import run_trial  # late, as it imports Optuna

    space = read_space(settings.space, settings.overrides)
    study = open_study(settings)
    assert settings.n_trials is not None
    while True:
        with ExitStack() as stack:
            claim = study.claim(stack, settings.n_trials, lambda trials: may_ask(trials, num_failed=num_failed))
            if claim is not None:
                named = " ".join(f"{key}={text}" for key, text in claim.texts.items())
                if claim.is_resumed:
                    say(f"trial {claim.number}  {named}  resumed")
                outcome = run_trial(claim, study, space, seeds, train)
                say(f"trial {claim.number}  {named}  {outcome}")
        if claim is None and study.is_done(settings.n_trials):
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


def may_ask(trials: Sequence[Any], *, num_failed: int = 0) -> bool:
    """Whether a new trial is to be begun: not yet where the first ones have failed, and those that run may do so too.

    Args:
        trials: Of the study, as Optuna has them.
        num_failed: Trials that had failed before: each start of a search tries a few more.

    Raises:
        RunError: If all have failed: the fault may not be that of their values.
    """
    from cifar_lightning.search.study import REASON

    failed = [trial for trial in trials if trial.state.name == "FAIL"]
    running = [trial for trial in trials if trial.state.name == "RUNNING"]
    is_any_good = len(failed) + len(running) < len(trials) or any(trial.intermediate_values for trial in running)
    if len(failed) - num_failed < FIRST_FAILURES or is_any_good:
        return True
    if running:
        return False
    raise RunError(
        f"the first {len(failed)} trials have all failed, the last one with: {failed[-1].user_attrs.get(REASON)}; "
        "if that is the fault of their values, the same command tries others; else mend it, and search in another "
        "folder, as these stay failed"
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


def message(settings: SearchSettings, seeds: Sequence[int], *, num_failed: int) -> bytes:
    """What a worker reads; see ``work``."""
    asked = {"settings": dataclasses.asdict(settings), "seeds": list(seeds), "num_failed": num_failed}
    return (json.dumps(asked) + "\n").encode()


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
    # Late, as it imports Optuna; while a signal still ends the process without a word.
    from cifar_lightning.search.trial import refuse_other_data

    code = 0
    with screens():
        try:
            with signals:
                threading.Thread(target=_end_with_parent, daemon=True).start()
                refuse_other_data(open_study(settings), read_space(settings.space, settings.overrides))
                work(settings, asked["seeds"], train, num_failed=asked["num_failed"])
        except Exception as error:  # whatever it is: with a traceback Python would also wait for the thread
            say(f"error: {in_words(error)}", "stderr")
            code = 2 if isinstance(error, UserError) else 1
        except Stopped as stopped:
            code = stopped.exit_code
    os._exit(code)  # at an orderly end Python would wait for the thread, which reads
