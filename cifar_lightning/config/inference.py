"""Settings of the commands that need a checkpoint and no data set, such as predict.py: checked once, then frozen."""

from typing import Any

from omegaconf import DictConfig

from cifar_lightning.config.resolve import check_tta, paths, plain, put_in_home
from cifar_lightning.config.schema import ExportSettings, PredictSettings, ServeSettings
from cifar_lightning.data.decode import MAX_PIXELS
from cifar_lightning.errors import UserError


def resolve_prediction(cfg: DictConfig) -> PredictSettings:
    """The settings of predict.py.

    Raises:
        UserError: If a key has no value, or one that is out of its range.
    """
    config = plain(cfg)
    put_in_home(config, "ckpt", "output_dir")
    _check_shared(config)
    what = "a file, a folder, a pattern or a list of these, as in [a.jpg,b.jpg]"
    config["images"] = paths("images", config["images"], what)
    return PredictSettings(**config)


def resolve_export(cfg: DictConfig) -> ExportSettings:
    """The settings of export.py.

    Raises:
        UserError: If a key has no value.
    """
    config = plain(cfg)
    put_in_home(config, "ckpt", "output_dir")
    return ExportSettings(**config)


def resolve_serving(cfg: DictConfig) -> ServeSettings:
    """The settings of serve.py.

    Raises:
        UserError: If a key has no value, or one that is out of its range.
    """
    config = plain(cfg)
    put_in_home(config, "ckpt")
    _check_shared(config)
    if not config["host"]:
        raise UserError("host must not be empty: 127.0.0.1 is this machine alone, 0.0.0.0 all its addresses")
    ranges = {
        "port": (0, 65_535),
        "max_mb": (0.001, 10_000),
        "max_files": (1, 10_000),
        "max_pixels": (1, MAX_PIXELS),
        "max_waiting": (config["max_files"], 1_000_000),
        "wait_ms": (0, 1_000),
    }
    for key, (least, most) in ranges.items():
        if not least <= config[key] <= most:
            hint = ", not below max_files" if key == "max_waiting" else ""
            raise UserError(f"{key} must be in [{least:,}, {most:,}]{hint}, got {config[key]}")
    return ServeSettings(**config)


def _check_shared(config: dict[str, Any]) -> None:
    """Check the keys of ``InferenceSettings``."""
    check_tta(config["tta"], may_be_null=True)
    if config["topk"] < 1:
        raise UserError(f"topk must be at least 1, got {config['topk']}")
