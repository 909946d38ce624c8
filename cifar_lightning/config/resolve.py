"""A config resolved and checked."""

import typing
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cifar_lightning.device import MAX_THREADS, fast_precision
from cifar_lightning.engine.compile import MODES
from cifar_lightning.errors import UserError, one_line


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain dictionaries, lists, strings and numbers, with every interpolation resolved.

    Raises:
        UserError: If a required key has no value or an interpolation cannot be resolved.
    """
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} has no value: set it with {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    assert isinstance(container, dict)
    return typing.cast("dict[str, Any]", container)


AUTO = "auto"
"""In ``normalize``: measured on the training split."""


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The plain config, with ``trainer.precision=auto`` replaced by what it stands for on this machine.

    Raises:
        UserError: If a key that training and evaluation share is out of its range.
    """
    config = plain(cfg)
    check_ranges(config)
    if config["trainer"]["precision"] == "auto":
        config["trainer"]["precision"] = fast_precision(config["trainer"]["accelerator"])
    return config


def check_ranges(config: dict[str, Any]) -> None:
    """Refuse values of keys that training and evaluation share.

    Raises:
        UserError: If one is out of its range.
    """
    if config["num_threads"] is not None and not 1 <= config["num_threads"] <= MAX_THREADS:
        raise UserError(
            f"num_threads must be in [1, {MAX_THREADS}], or null for a sensible number, got {config['num_threads']}"
        )
    if config["tta"] not in (0, 1, 2):
        raise UserError(f"tta must be 0 (none), 1 (mirror images) or 2 (six views), got {config['tta']}")
    if not isinstance(config["compile"], bool) and config["compile"] not in MODES:
        raise UserError(f"compile must be true, false or one of {', '.join(MODES)}, got {config['compile']}")


def take_measured(config: dict[str, Any], measured: dict[str, Any]) -> None:
    """Put figures that have been measured into a config, wherever it says auto for them."""
    for node in (config["normalize"], config["augment"] or {}):
        for name, value in measured["normalize"].items():
            if node.get(name) == AUTO:
                node[name] = value
