"""Settings of compare.py: checked once, then frozen."""

from omegaconf import DictConfig

from cifar_lightning.config.resolve import paths, plain, put_in_home, texts
from cifar_lightning.config.schema import CompareSettings
from cifar_lightning.errors import UserError


def resolve_comparison(cfg: DictConfig) -> CompareSettings:
    """The settings of compare.py.

    Raises:
        UserError: If a key has no value, or one that is out of its range.
    """
    config = plain(cfg)
    put_in_home(config, "output_dir")
    for key in ("metric", "baseline"):
        if config[key] == "":
            raise UserError(f"{key} must not be empty: give it a value, or leave it out")
    if config["runs"] is None:
        raise UserError("runs=FOLDER is missing: a folder of runs, such as runs=logs/sweep")
    config["runs"] = paths("runs", config["runs"], "a folder, a pattern, a file or a list of these")
    config["by"] = texts("by", config["by"] or [], "folder, a key of metrics.json, or a list of these")
    return CompareSettings(**config)
