"""One trial: an ordinary run of ``train`` for each of its seeds, in a folder of its own."""

import errno
import logging
import os
import statistics
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState

from cifar_lightning.config.build import build
from cifar_lightning.config.invocation import Invocation
from cifar_lightning.config.recipe import is_below
from cifar_lightning.config.resolve import resolve
from cifar_lightning.engine.assembly import read_data
from cifar_lightning.errors import Pruned, RunError, SweepError, UserError, in_words
from cifar_lightning.files import own_folder
from cifar_lightning.report.console import Lines, LogFile
from cifar_lightning.report.tables import shown
from cifar_lightning.runs.folder import CONFIG
from cifar_lightning.search.check import composed
from cifar_lightning.search.space import Space
from cifar_lightning.search.study import Claim, Study, Unwritable, unwritable

Train = Callable[[DictConfig, Invocation], dict[str, Any]]
"""``commands.train.train``."""

_NOT_ITS_FAULT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What the system answers where no trial could write."""

_OF_DATA = "its images are not those of the trials before it: search other data in another folder"

_KEEP_IMAGES = ("data.batch_size", "data.eval_batch_size")
"""Keys of the data that may be searched and do not decide which images there are."""


def run_trial(claim: Claim, study: Study, space: Space, seeds: Sequence[int], train: Train) -> str:
    """Run a trial and note in the study how it has ended.

    Args:
        claim: The trial.
        study: Its study.
        space: What is searched.
        seeds: Of its runs; the first run decides about pruning.
        train: Trains a run.

    Returns:
        How it has ended, in words.

    Raises:
        SweepError: If no trial could be run; the trial is continued by the next search.
        Unwritable: Likewise, of a disk that is full.
    """
    try:
        accs = [
            _run(claim, study, space, seed, train, may_prune=i == 0, is_only=len(seeds) == 1)
            for i, seed in enumerate(seeds)
        ]
    except Pruned as pruned:
        study.finish(claim.number, TrialState.PRUNED, reason=str(pruned))
        return str(pruned)
    except (SweepError, Unwritable):
        raise
    except Exception as error:
        cause = error.__cause__ if isinstance(error, RunError | UserError) else error
        if isinstance(cause, OSError) and cause.errno in _NOT_ITS_FAULT:
            raise unwritable(study.folder, error, cause) from error
        study.finish(claim.number, TrialState.FAIL, reason=in_words(error))
        return f"failed: {in_words(error)}"
    acc = statistics.fmean(accs)
    study.finish(claim.number, TrialState.COMPLETE, value=acc)
    mean = f", mean of {len(accs)} seeds" if len(accs) > 1 else ""
    return f"{shown('acc', acc)}{mean}"


def refuse_other_data(study: Study, space: Space) -> None:
    """Refuse to go on with other images than those of the trials before, if that can be told before one is trained.

    Args:
        study: Which may have no such trials yet.
        space: What is searched; it may decide the images itself.

    Raises:
        SweepError: If they are others.
        UserError: If the data cannot be read.
    """
    if not study.knows_data or _decides_images(space):
        return
    try:
        chosen = {parameter.key: parameter.tried[0] for parameter in space.parameters}
        config = resolve(composed(space.overrides(chosen), study.folder / "0"))
        data = build(config.data, "data", seed=config.seed)
    except UserError:  # of values that do not go together
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        read_data(data, config.data)
    if not study.check_data(data.fingerprint()):
        raise SweepError(_other_data(study, data.root))


def _decides_images(space: Space) -> bool:
    keys = {parameter.key for parameter in space.parameters} - {*_KEEP_IMAGES}
    return any(is_below(key, ["data", "experiment"]) for key in keys)


def _other_data(study: Study, root: Any) -> str:
    return (
        f"study={study.folder}: the images are not those of the trials before; bring the data back to what they were "
        f"(data.root={root}), then the same command continues, or search these in another folder"
    )


def _run(claim: Claim, study: Study, space: Space, seed: int, train: Train, *, may_prune: bool, is_only: bool) -> float:
    folder = study.folder / str(claim.number)
    overrides = space.overrides(claim.texts)
    try:
        own_folder(folder)
        if not is_only:
            folder, overrides = folder / f"seed{seed}", [*overrides, f"seed={seed}"]
            own_folder(folder)
    except OSError as error:
        raise SweepError(f"study={study.folder} cannot be used: {error}") from error

    def report(epochs: int, acc: float) -> None:
        if study.report(claim.number, epochs, acc):
            raise Pruned(f"pruned after epoch {epochs} at {shown('acc', acc)}")

    invocation = Invocation(
        overrides=tuple(overrides),
        hydra_yaml=lambda: OmegaConf.to_yaml({"hydra": {"overrides": {"task": list(overrides)}}}),
        is_sweep=True,
        is_placed=True,
        report=report if may_prune else None,
        sweeper_optimises=True,
    )
    cfg = composed(overrides, folder, resume="auto" if (folder / CONFIG).exists() else None)
    with _logged(folder / "train.log"):
        metrics = train(cfg, invocation)
    acc, fingerprint = metrics.get("val/acc"), metrics.get("fingerprint")
    if not isinstance(acc, float) or not 0 <= acc <= 1:
        raise RunError(f"val/acc is {acc!r}, and no accuracy")
    if isinstance(fingerprint, Mapping) and not study.check_data(fingerprint):
        if _decides_images(space):
            raise RunError(_OF_DATA)
        _set_aside(folder)
        raise SweepError(_other_data(study, OmegaConf.select(cfg, "data.root")))
    return acc


def _set_aside(folder: Path) -> None:
    """Give the folder of a run another name, so that the trial is run anew; nothing is lost."""
    places = (folder.with_name(f"{folder.name}.other-data{number or ''}") for number in count())
    folder.rename(next(place for place in places if not os.path.lexists(place)))


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Have a run say what it says in its log file alone: several runs share the console."""
    root = logging.getLogger()
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = LogFile(str(path), delay=True)
    handler.setFormatter(Lines("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
    before, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            yield
    except Exception as error:
        if not isinstance(error, UserError | RunError):
            logging.getLogger(__name__).error("%s", "".join(traceback.format_exception(error)))
        raise
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = before
        root.setLevel(level)
        handler.close()
