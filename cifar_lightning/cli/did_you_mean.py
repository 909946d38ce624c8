"""Hydra's errors of composition, told in one line with the nearest valid name."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning.cli.mistyped import unreadable, unswept
from cifar_lightning.cli.yaml_faults import content_fault, encoding_fault, syntax_fault
from cifar_lightning.config.schema import CONF, REFUSED_TRAINER_ARGUMENTS, compose, groups_of
from cifar_lightning.errors import UserError, nearest, one_line


def explained(
    error: Exception,
    overrides: list[str],
    config_name: str,
    config_dirs: Sequence[Path] = (),
    *,
    sweeps: bool = True,
) -> Exception:
    """Hydra's errors of composition as a UserError that names the nearest valid key; others as they are.

    Args:
        error: What Hydra raised.
        overrides: Those of the command line.
        config_name: Name of the primary config.
        config_dirs: Folders of one's own whose files Hydra reads beside conf/.
        sweeps: Whether the entry can run several jobs.
    """
    folders = [CONF, *config_dirs]
    if isinstance(error, yaml.YAMLError):
        return UserError(syntax_fault(error))
    if isinstance(error, UnicodeDecodeError) and (fault := encoding_fault(folders)):
        return UserError(fault)
    if isinstance(error, ConfigCompositionException) and (fault := content_fault(error, folders)):
        return UserError(fault)
    if isinstance(error, OverrideParseException):
        return UserError(unreadable(error.override, error.message))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        return UserError(f"{group}={choice} is not one of its choices{nearest(choice, error.options)}")
    if isinstance(error, ConfigCompositionException) and (
        match := re.search(r"Could not override '([^']+)'", str(error))
    ):
        return UserError(_explain_key(match.group(1), error, overrides, config_name))
    if isinstance(error, ConfigCompositionException) and (fault := unswept(error, config_name, sweeps=sweeps)):
        return UserError(fault)
    if isinstance(error, CompactHydraException | OmegaConfBaseException):
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
        key, message = getattr(cause, "full_key", None), str(getattr(cause, "msg", None) or cause)
        return UserError(f"{key}: {message.partition(chr(10))[0]}" if key else " ".join(message.split()))
    if isinstance(error, ValueError) and str(error).startswith("Unable to configure handler"):  # of logging
        return UserError(_cannot_use_folder(error.__cause__ or error, overrides))
    if isinstance(error, ValueError | TypeError):  # Hydra's own, of values it has no better word for
        return UserError(f"{' '.join(overrides)}: {one_line(error)}".removeprefix(": "))
    if isinstance(error, OSError):  # the task's own errors never come here: this is Hydra making the run's folder
        return UserError(_cannot_use_folder(error, overrides))
    return error


_OTHER_NAMES = {
    "epochs": "max_epochs",
    "num_epochs": "max_epochs",
    "device": "accelerator",
    "gpu": "accelerator",
    "gpus": "devices",
}
"""Names that other programs have for a key, and the one that it has here."""

_FOLDER_KEYS = ("hydra.job_logging.handlers.file.filename", "hydra.sweep.subdir", "hydra.sweep.dir", "hydra.run.dir")
"""Keys of Hydra that decide where a run writes, besides ``output_dir``."""


def _cannot_use_folder(error: BaseException, overrides: list[str]) -> str:
    """What the system says of the run's folder, or of the log file there, with the key that decides about it."""
    typed = {override.partition("=")[0]: override for override in overrides}
    key = next((typed[key] for key in (*_FOLDER_KEYS, "output_dir") if key in typed), "output_dir")
    return f"{key} cannot be used: {one_line(error)}; name a folder that can be written with output_dir="


def _explain_key(key: str, error: Exception, overrides: list[str], config_name: str) -> str:
    key = key.partition("@")[0]
    given = next((override for override in overrides if override.partition("=")[0] == key), key)
    parent, _, name = key.rpartition(".")
    if parent == "trainer" and name in REFUSED_TRAINER_ARGUMENTS:
        return f"{given}: this argument of the Trainer is the project's own; {REFUSED_TRAINER_ARGUMENTS[name]}"
    try:
        config, groups = _composed_without(key, overrides, config_name)
    except CompactHydraException:  # the fault is in conf/ itself
        return one_line(error)
    section = OmegaConf.select(config, parent) if parent else config
    if not isinstance(section, DictConfig):
        return f"{given}: there is no {parent}{_nearest_key(key, config, groups)}"
    if name in section:  # the key is right, so the value is wrong
        return f"{given}: {one_line(error.__cause__ or error)}".split(" full_key:")[0]
    return f"{given}: there is no key {key}{_nearest_key(key, config, groups)}"


def _nearest_key(key: str, config: DictConfig, groups: list[str]) -> str:
    """The nearest key of the same section, or one of that name elsewhere."""
    parent, _, name = key.rpartition(".")
    section = OmegaConf.select(config, parent) if parent else config
    siblings = [str(k) for k in section if k != "_target_"] if isinstance(section, DictConfig) else []
    here = _OTHER_NAMES.get(name, name)
    elsewhere = [path for path in _paths(OmegaConf.to_container(config)) if path.rpartition(".")[2] == here]
    if parent and not isinstance(section, DictConfig):
        hint = _nearest_key(parent, config, groups)
        return f": did you mean {elsewhere[0]}?" if elsewhere and "did you mean" not in hint else hint
    if elsewhere and name not in siblings:
        return f": did you mean {elsewhere[0]}?"
    hint = nearest(name, siblings if parent else {*siblings, *groups})
    return hint.replace("did you mean ", f"did you mean {parent}.") if parent else hint


def _paths(config: Any, prefix: str = "") -> list[str]:
    if not isinstance(config, dict):
        return []
    return [path for key, value in config.items() for path in (f"{prefix}{key}", *_paths(value, f"{prefix}{key}."))]


def _composed_without(key: str, overrides: list[str], config_name: str) -> tuple[DictConfig, list[str]]:
    """The config as it would be without the override in question, and the names of the config groups."""
    groups = groups_of(config_name)
    choices = [o for o in overrides if o.partition("=")[0] in groups and o.partition("=")[0] != key and "," not in o]
    GlobalHydra.instance().clear()
    return compose(*choices, config_name=config_name), groups
