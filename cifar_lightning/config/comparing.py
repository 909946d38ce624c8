"""Settings of compare.py: checked once, then frozen."""

import dataclasses
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from cifar_lightning.config.resolve import EvaluateSettings, paths, plain, put_in_home, resolve_evaluation, texts
from cifar_lightning.errors import UserError

OF_RUNS = ("runs", "metric", "baseline", "by")
"""Keys for comparing runs."""

OF_CHECKPOINTS = ("ckpt", "split", "tta", "num_threads", "data", "trainer")
"""Keys for comparing checkpoints, with those below them."""


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """How runs are compared."""

    runs: tuple[str, ...]
    output_dir: str | None
    metric: str
    baseline: str | None
    by: tuple[str, ...]


def resolve_comparison(cfg: DictConfig) -> CompareSettings:
    """The settings of a comparison of runs.

    Raises:
        UserError: If a key has no value, or one that is out of its range.
    """
    config = plain(OmegaConf.masked_copy(cfg, [*OF_RUNS, "output_dir"]))
    put_in_home(config, "output_dir")
    for key in ("metric", "baseline"):
        if config[key] == "":
            raise UserError(f"{key} must not be empty: give it a value, or leave it out")
    config["runs"] = paths("runs", config["runs"], "a folder, a pattern, a file or a list of these")
    config["by"] = texts("by", config["by"] or [], "folder, a key of metrics.json, or a list of these")
    return CompareSettings(**config)


def resolve_checkpoints(cfg: DictConfig) -> list[EvaluateSettings]:
    """The settings of the evaluation of each checkpoint that is compared.

    Raises:
        UserError: If there are not two or more, or a value is out of its range.
    """
    keys = [*OF_CHECKPOINTS, "output_dir"]
    what = "a list of two or more checkpoints, as in ckpt=[a.ckpt,b.ckpt]"
    given = plain(OmegaConf.masked_copy(cfg, ["ckpt"]))["ckpt"]
    files = paths("ckpt", given, what)
    if len(files) < 2:
        raise UserError(f"ckpt must be {what}, got {given!r}")
    evaluation = {"ckpt": files[0], "compile": False, "other_sets": None, "corruptions": False}
    merged = OmegaConf.merge(OmegaConf.masked_copy(cfg, keys), evaluation)
    assert isinstance(merged, DictConfig)
    settings = resolve_evaluation(merged)
    return [dataclasses.replace(settings, ckpt=file) for file in files]
