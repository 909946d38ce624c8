"""What every entry has in common: Hydra runs its task, and each error becomes one line and an exit code.

0 done, 1 failed while running, 2 bad configuration or input. ``HYDRA_FULL_ERROR=1`` shows the traceback as well.
"""

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning.config import CONF, UserError, nearest, one_line, register

log = logging.getLogger(__name__)

OWNED = {
    "logger": "choose with logger=",
    "callbacks": "choose with callbacks=",
    "default_root_dir": "choose the run's folder with output_dir=",
    "enable_checkpointing": "every run writes its checkpoints",
    "plugins": "the project sets them",
    "barebones": "benchmarks/compare.py measures the Trainer's cost",
    "model_registry": "checkpoints are local files",
}
"""Trainer arguments that the project sets itself, and what to use instead."""


@dataclass
class _Job:
    number: int
    overrides: str
    outcome: str
    failed: bool


def run(
    task: Callable[[DictConfig], float | None],
    *,
    config_name: str,
    prepare: Callable[[list[str]], list[str]] = lambda overrides: overrides,
) -> NoReturn:
    """Run a task as configured by conf/ and the command line, then exit.

    Args:
        task: Called with the composed config, whose ``output_dir`` is the run's folder; what it returns goes to
            Hydra's sweeper.
        config_name: Name of the primary config in conf/.
        prepare: May change the command line's arguments before Hydra reads them.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(_help(task, config_name))
        sys.exit(0)
    register()
    # Lightning 2.6 over torch 2.14; nothing a user could mend.
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*", category=FutureWarning)
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands exceptions on, instead of printing them over several lines
    jobs: list[_Job] = []

    def job(cfg: DictConfig) -> float | None:
        is_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        cfg.output_dir = HydraConfig.get().runtime.output_dir
        try:
            result = task(cfg)
        except Exception as error:
            if wants_traceback:
                raise
            _log_traceback(error)
            if not is_sweep:
                # Not handed to Hydra, which would write a line of its own first.
                raise SystemExit(report(error)) from error
            jobs.append(_current_job(f"failed: {_describe(error)}", failed=True))
            print(
                f"error: job {jobs[-1].number} ({jobs[-1].overrides}): {_describe(error)}", file=sys.stderr, flush=True
            )
            raise  # to the sweeper, which goes on with the other jobs
        if is_sweep:
            jobs.append(_current_job("done" if result is None else f"done: {result:.4f}", failed=False))
        return result

    try:
        _refuse_additions(sys.argv[1:])
        # argparse takes -m between two overrides for the end of them
        sys.argv[1:] = sorted(prepare(sys.argv[1:]), key=lambda argument: argument not in ("-m", "--multirun"))
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
        status = 0
    except Exception as error:
        if wants_traceback:
            raise
        if not any(job.failed for job in jobs):
            sys.exit(report(_explained(error, sys.argv[1:], config_name)))
        status = 1
    for entry in jobs:
        print(
            f"job {entry.number}  {entry.overrides}  {entry.outcome}", file=sys.stderr if entry.failed else sys.stdout
        )
    sys.exit(status)


def _help(task: Callable[[DictConfig], float | None], config_name: str) -> str:
    """What can be chosen, read off conf/ at once; Hydra's own help takes a second to compose every choice."""
    primary = (CONF / f"{config_name}.yaml").read_text()
    groups = [folder.name for folder in sorted(CONF.iterdir()) if f"- {folder.name}:" in primary]
    choices = "\n".join(
        f"  {group:<11} {', '.join(sorted(f.stem for f in (CONF / group).glob('*.yaml')))}" for group in groups
    )
    keys = primary.partition("\nhydra:")[0].strip()
    return f"""{sys.modules[task.__module__].__doc__}

Choices, as group=choice:
{choices}

Keys, as key=value; conf/{config_name}.yaml:
{keys}

More:
  --cfg job    show every key of the composed config, and run nothing
  -m           sweep: optimizer.lr=0.001,0.01 seed=0,1,2
  --hydra-help Hydra's own flags"""


def _current_job(outcome: str, *, failed: bool) -> _Job:
    config = HydraConfig.get()
    overrides = list(config.overrides.task)
    swept = [override for override in overrides if override not in sys.argv]  # the others are the same for all jobs
    return _Job(config.job.num, " ".join(swept or overrides), outcome, failed)


def sweeper_optimises() -> bool:
    """Whether the sweeper chooses jobs by what the task returns; Hydra's own goes through all values."""
    config = HydraConfig.get()
    return config.mode == RunMode.MULTIRUN and not config.sweeper._target_.endswith(".BasicSweeper")


def _describe(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {one_line(error)} (HYDRA_FULL_ERROR=1 shows where)"


def report(error: BaseException) -> int:
    """Write an error as one line; return the exit code."""
    print(f"error: {_describe(error)}", file=sys.stderr, flush=True)
    return 2 if isinstance(error, UserError) else 1


def _log_traceback(error: BaseException) -> None:
    """Keep the traceback in the run's log file, off the console."""
    text = "".join(traceback.format_exception(error))
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, text, (), None)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler):
            handler.emit(record)


def _refuse_additions(arguments: list[str]) -> None:
    """``+key=value`` and ``~key`` would slip past the schema: a misspelt key would be taken in silence."""
    for argument in arguments:
        key = argument.lstrip("+~").partition("=")[0]
        if argument.startswith("+") and not key.startswith("hydra"):
            raise UserError(f"{argument}: no key can be added; write {argument.lstrip('+')} to set one that exists")
        if argument.startswith("~") and not key.startswith("hydra"):
            raise UserError(f"{argument}: no key can be removed; write {key}=null to go without")


def _explained(error: Exception, overrides: list[str], config_name: str) -> Exception:
    """Hydra's errors of composition as a UserError that names the nearest valid key; others as they are."""
    if isinstance(error, OverrideParseException):
        return UserError(
            f"cannot read {error.override!r}: a value with any of = , ( ) [ ] {{ }} or quotes wants quotes around it, "
            f"such as 'key=\"value\"' ({error.message.splitlines()[0]})"
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return UserError(f"{group}={choice} is not one of its choices{nearest(choice, error.options)}")
    if isinstance(error, ConfigCompositionException) and (
        match := re.search(r"Could not override '([^']+)'", str(error))
    ):
        return UserError(_explain_key(match.group(1), error, overrides, config_name))
    if isinstance(error, CompactHydraException | OmegaConfBaseException):
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        key, message = getattr(cause, "full_key", None), str(getattr(cause, "msg", None) or cause)
        return UserError(f"{key}: {message.partition(chr(10))[0]}" if key else " ".join(message.split()))
    if isinstance(error, OSError):  # the task's own errors never come here: this is Hydra making the run's folder
        return UserError(f"output_dir cannot be used: {one_line(error)}")
    return error


def _explain_key(key: str, error: Exception, overrides: list[str], config_name: str) -> str:
    key = key.partition("@")[0]
    given = next((override for override in overrides if override.partition("=")[0] == key), key)
    parent, _, name = key.rpartition(".")
    if parent == "trainer" and name in OWNED:
        return f"{given}: this argument of the Trainer is the project's own; {OWNED[name]}"
    try:
        config, groups = _composed_without(key, overrides, config_name)
    except CompactHydraException:  # the fault is in conf/ itself
        return one_line(error)
    section = OmegaConf.select(config, parent) if parent else config
    if not isinstance(section, DictConfig):
        return f"{given}: there is no {parent}{_nearest_key(parent, config, groups)}"
    if name in section:  # the key is right, so the value is wrong
        return f"{given}: {one_line(error.__cause__ or error)}".split(" full_key:")[0]
    return f"{given}: there is no key {key}{_nearest_key(key, config, groups)}"


def _nearest_key(key: str, config: DictConfig, groups: list[str]) -> str:
    """The nearest key of the same section, or one of that name elsewhere."""
    parent, _, name = key.rpartition(".")
    section = OmegaConf.select(config, parent) if parent else config
    siblings = [str(k) for k in section if k != "_target_"] if isinstance(section, DictConfig) else []
    elsewhere = [path for path in _paths(config) if path.rpartition(".")[2] == name]
    if elsewhere and name not in siblings:
        return f": did you mean {elsewhere[0]}?"
    hint = nearest(name, siblings if parent else [*siblings, *groups])
    return hint.replace("did you mean ", f"did you mean {parent}.") if parent else hint


def _paths(config: Any, prefix: str = "") -> list[str]:
    if not isinstance(config, DictConfig):
        return []
    found = []
    for key in config:
        path = f"{prefix}{key!s}"
        found += [path, *_paths(config._get_node(key), f"{path}.")]
    return found


def _composed_without(key: str, overrides: list[str], config_name: str) -> tuple[DictConfig, list[str]]:
    """The config as it would be without the override in question, and the names of the config groups."""
    groups = [folder.name for folder in CONF.iterdir() if folder.is_dir()]
    choices = [o for o in overrides if o.partition("=")[0] in groups and o.partition("=")[0] != key and "," not in o]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(config_name, choices), groups
