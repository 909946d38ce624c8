"""What is refused before a search begins: keys, values and validation images that no trial could be run with."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from cifar_lightning.config.build import blame, build_pieces
from cifar_lightning.config.resolve import resolve
from cifar_lightning.config.schema import compose
from cifar_lightning.engine.launch import ranks_to_start
from cifar_lightning.errors import UserError, nearest, one_line
from cifar_lightning.search.space import Space

_NUM_TRIES = 5
"""Combinations in which a value must fail to be refused: with other values it may be right."""


def composed(overrides: Sequence[str], folder: Path, *, resume: str | None = None) -> DictConfig:
    """The config of train.py for a trial.

    Args:
        overrides: The trial's.
        folder: That of its run.
        resume: See conf/train.yaml.

    Raises:
        UserError: If Hydra cannot compose it.
    """
    try:
        cfg = compose(*overrides)
    except MissingConfigException as error:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        raise UserError(f"{group}={choice} is not one of its choices{nearest(choice, error.options or [])}") from error
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(one_line(error)) from error
    with open_dict(cfg):
        cfg.output_dir, cfg.resume = str(folder), resume
    return cfg


def check_space(space: Space, folder: Path) -> DictConfig:
    """Refuse a search in which a key or a value is wrong whatever the others are.

    Args:
        space: What is searched.
        folder: Of the study; nothing is written into it.

    Returns:
        The config of the first combination.

    Raises:
        UserError: If that is so, or there are no validation images to compare trials on.
    """
    cfg = _check_some(space, {}, folder)
    _check_validation(cfg)
    for parameter in space.parameters:
        for text in parameter.tried[1:]:
            _check_some(space, {parameter.key: text}, folder)
    return cfg


def _check_some(space: Space, chosen: Mapping[str, str], folder: Path) -> DictConfig:
    """The config of the first combination with some chosen values that train.py takes.

    Raises:
        UserError: If it takes none, with what it says of the first one.
    """
    first = {parameter.key: parameter.tried[0] for parameter in space.parameters}
    rng, refusals = random.Random(0), list[UserError]()
    for number in range(_NUM_TRIES):
        others = first if number == 0 else {one.key: rng.choice(one.tried) for one in space.parameters}
        try:
            return _checked(space.overrides(others | dict(chosen)), folder)
        except UserError as error:
            refusals.append(error)
    named = " ".join(f"{key}={text}" for key, text in chosen.items())
    raise UserError(f"{named}: {refusals[0]}" if named and named not in str(refusals[0]) else str(refusals[0]))


def _checked(overrides: Sequence[str], folder: Path) -> DictConfig:
    cfg = composed(overrides, folder / "0")
    settings = dataclasses.replace(resolve(cfg), logger=None)  # loggers could make folders
    if ranks_to_start(settings.trainer) != 1:
        raise UserError(
            f"trainer.devices must be 1 in a search, got {settings.trainer['devices']}: each worker has a device of "
            "its own; n_workers=2 uses two"
        )
    pieces = build_pieces(settings)
    with blame("optimizer", settings.optimizer):
        pieces.optimizer(nn.Linear(1, 1))
    return cfg


def _check_validation(cfg: DictConfig) -> None:
    for key, section, name in (
        ("data.val_size", cfg.data, "val_size"),
        ("trainer.limit_val_batches", cfg.trainer, "limit_val_batches"),
    ):
        if section.get(name) == 0:
            raise UserError(
                f"{key} must be above 0, got 0: trials are compared by val/acc, on validation images, as the test "
                f"images choose nothing; {'set it, as in data.val_size=5000' if name == 'val_size' else 'leave it out'}"
            )
