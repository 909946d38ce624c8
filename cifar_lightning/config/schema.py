"""The schema of the top-level keys, and the resolvers of conf/."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

CONF = Path(__file__).resolve().parents[2] / "conf"


@dataclass
class TrainSchema:
    """Top-level keys of conf/train.yaml; below them the constructors' signatures are the schema."""

    name: str = MISSING
    seed: int = MISSING
    output_dir: str | None = None
    resume: str | None = None
    num_threads: int | None = None
    compile: Any = False
    label_smoothing: float = 0.0
    freeze: Any = MISSING
    tta: int = 0
    data: Any = MISSING
    normalize: Any = MISSING
    augment: Any = None
    model: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = None
    callbacks: Any = None
    logger: Any = None
    checkpoint: Any = MISSING
    trainer: Any = MISSING


@dataclass
class EvaluateSchema:
    """Top-level keys of conf/evaluate.yaml."""

    ckpt: str = MISSING
    split: str = "test"
    output_dir: str | None = None
    tta: int = 0
    num_threads: int | None = None
    compile: Any = False
    data: Any = MISSING
    trainer: Any = MISSING


def register() -> None:
    """Make the schemas and the resolvers of conf/ known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainSchema)
    store.store(name="evaluate_schema", node=EvaluateSchema)
    OmegaConf.register_new_resolver("first", _first, replace=True)
    OmegaConf.register_new_resolver("evaluate_dir", _evaluate_dir, replace=True)


def _first(*values: Any) -> Any:
    """The first value that is not null: ``${first:${output_dir},logs/default}``."""
    return next((value for value in values if value is not None), None)


def _evaluate_dir(ckpt: str, split: str) -> str:
    """Where evaluate.py writes: beside the checkpoints of a run folder, else into a new folder under logs/."""
    path = Path(ckpt)
    if path.parent.name == "checkpoints":
        return str(path.parent.parent / "evaluate" / (path.stem if split == "test" else f"{path.stem}-{split}"))
    return f"logs/evaluate/{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"
