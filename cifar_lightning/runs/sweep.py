"""The jobs of a sweep: which folder holds one, and what refuses the whole sweep."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning.checkpoint.trust import check_values, read_text
from cifar_lightning.config.invocation import Invocation
from cifar_lightning.config.resolve import plain
from cifar_lightning.errors import SweepError, UserError
from cifar_lightning.runs.folder import CONFIG, refuse_used


def config_of_job(cfg: DictConfig, invocation: Invocation) -> DictConfig:
    """The config of one job, in the folder that holds this very job if the sweep has been run before.

    Raises:
        SweepError: If the sweep cannot be run: its folder holds another one, ``resume`` names a run, or a sweeper that
            optimises has no validation images.
    """
    if invocation.sweeper_optimises and cfg.data.val_size == 0:
        raise SweepError(
            "data.val_size must be above 0 for a sweeper that optimises val/acc, got 0; set it, such as to 5000"
        )
    if cfg.resume not in (None, "auto"):
        raise SweepError(
            f"resume={cfg.resume}: a sweep is resumed by its own command, with the same output_dir; leave resume out"
        )
    folder = _folder_of_job(cfg)
    resume = "auto" if (folder / CONFIG).exists() else None
    placed = OmegaConf.merge(cfg, {"output_dir": str(folder), "resume": resume})
    assert isinstance(placed, DictConfig)
    return placed


def _folder_of_job(cfg: DictConfig) -> Path:
    own = Path(cfg.output_dir)
    for path in sorted(own.parent.glob(f"*/{CONFIG}")):
        if _same_job(cfg, path):
            return path.parent.parent
    try:
        refuse_used(own.parent)
    except UserError as error:
        raise SweepError(str(error)) from error
    if (own / CONFIG).exists():
        raise SweepError(
            f"output_dir={own.parent} holds a run already, whose job {own.name} has another config: name another folder"
        )
    return own


def _same_job(cfg: DictConfig, path: Path) -> bool:
    """Whether a recorded config asks for the same run, wherever it is kept."""
    try:
        text = read_text(path)
        check_values(path, yaml.safe_load(text))  # which omegaconf would copy wherever it is referred to
        recorded = OmegaConf.create(text)
        return isinstance(recorded, DictConfig) and _without_place(recorded) == _without_place(cfg)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException, UserError):
        return False  # not written by a job of this project


def _without_place(cfg: DictConfig) -> dict[str, Any]:
    return plain(OmegaConf.merge(cfg, {"output_dir": "", "resume": None}))  # type: ignore[arg-type]
