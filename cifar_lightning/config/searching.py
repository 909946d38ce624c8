"""Settings of search.py: checked once, then frozen."""

import os

from omegaconf import DictConfig, OmegaConf

from cifar_lightning.config.resolve import plain, put_in_home
from cifar_lightning.config.schema import SearchSettings
from cifar_lightning.errors import UserError
from cifar_lightning.typehints import fits

SAMPLERS = ("tpe", "random", "grid")
"""What ``sampler`` may be."""

PRUNERS = ("median", "halving", "none")
"""What ``pruner`` may be."""

_MAX = {"n_trials": 100_000, "n_workers": 1_000, "seeds": 1_000}


def resolve_search(cfg: DictConfig) -> SearchSettings:
    """The settings of a search.

    Raises:
        UserError: If a key has no value, or one that is out of its range.
    """
    own = [str(key) for key in cfg if key not in ("overrides", "space")]
    config = plain(OmegaConf.masked_copy(cfg, own))
    put_in_home(config, "study")
    if config["study"] is None:
        raise UserError("study=FOLDER is missing: a folder for the search, such as study=logs/lr")
    for key, most in _MAX.items():
        if config[key] is not None and not 1 <= config[key] <= most:
            raise UserError(f"{key} must be in [1, {most:,}], got {config[key]}")
    if config["sampler_seed"] < 0:
        raise UserError(f"sampler_seed must be at least 0, got {config['sampler_seed']}")
    if config["pruner"] is None:
        config["pruner"] = "none"
    for key, allowed in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        if config[key] not in allowed:
            raise UserError(f"{key} must be one of {', '.join(allowed)}, got {config[key]}")
    overrides = OmegaConf.to_container(cfg)["overrides"]  # type: ignore[index,call-overload]  # as they are typed
    space = OmegaConf.to_container(cfg)["space"] or {}  # type: ignore[index,call-overload]
    if not fits(overrides or [], list[str]):
        raise UserError(f"overrides must be a list of overrides of train.py, got {overrides!r}")
    if not isinstance(space, dict) or not fits(list(space.values()), list[str | int | float | bool]):
        raise UserError(f"space must be spaces by key, as in conf/search/lr.yaml, got {space!r}")
    texts = {str(key): str(value) for key, value in space.items()}
    return SearchSettings(
        **{**config, "study": os.fspath(config["study"]), "overrides": tuple(overrides or ()), "space": texts}
    )
