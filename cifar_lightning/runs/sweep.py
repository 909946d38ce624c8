"""The jobs of a sweep and their folders."""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning.checkpoint.trust import check_values, read_text
from cifar_lightning.config.resolve import plain
from cifar_lightning.errors import UserError
from cifar_lightning.runs.folder import CONFIG, refuse_used


def place_of_job(cfg: DictConfig) -> Path:
    """The folder for one job of a sweep: the one that holds this very job already, if the sweep has been run before.

    Raises:
        UserError: If the job's own folder holds a job with another config.
    """
    own = Path(cfg.output_dir)
    for path in sorted(own.parent.glob(f"*/{CONFIG}")):
        if _same_job(cfg, path):
            return path.parent.parent
    refuse_used(own.parent)
    if (own / CONFIG).exists():
        raise UserError(
            f"output_dir={own.parent} holds a run already, whose job {own.name} has another config: name another folder"
        )
    return own


def _same_job(cfg: DictConfig, path: Path) -> bool:
    """Whether a recorded config asks for the same run, wherever it is kept."""
    try:
        text = read_text(path)
        check_values(path, yaml.safe_load(text))  # which omegaconf would copy wherever it is referred to
        recorded = OmegaConf.create(text)
        return isinstance(recorded, DictConfig) and _placeless(recorded) == _placeless(cfg)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException, UserError):
        return False  # not written by a job of ours


def _placeless(cfg: DictConfig) -> dict[str, Any]:
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.output_dir, cfg.resume = "", None
    return plain(cfg)
