"""The schema of the top-level keys, and how a config is composed from conf/."""

import re
from dataclasses import dataclass, fields, make_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import MISSING, DictConfig, OmegaConf

from cifar_lightning.config import shares  # noqa: F401  # its resolvers
from cifar_lightning.config.overrides import as_texts, expanded

CONF = Path(__file__).resolve().parents[2] / "conf"
"""The folder of the choices."""


@dataclass
class TrainSchema:
    """Top-level keys of conf/train.yaml; below them the constructors' signatures are the schema."""

    name: str = MISSING
    seed: int = MISSING
    output_dir: str | None = None
    resume: str | None = None
    init: str | None = None
    num_threads: int | None = None
    compile: Any = False
    label_smoothing: float = 0.0
    class_weights: str | None = None
    freeze: Any = MISSING
    freeze_trunk: float = 0.0
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
    other_sets: Any = "auto"
    corruptions: bool = False
    data: Any = MISSING
    trainer: Any = MISSING


@dataclass
class CompareSchema:
    """Top-level keys of conf/compare.yaml."""

    runs: Any = None
    ckpt: Any = None
    output_dir: str | None = None
    metric: str = MISSING
    baseline: str | None = None
    by: Any = None
    split: str = MISSING
    tta: int = MISSING
    num_threads: int | None = None
    data: Any = MISSING
    trainer: Any = MISSING


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What search.py does: the keys of conf/search.yaml."""

    study: str | None
    n_trials: int | None
    n_workers: int
    seeds: int
    sampler: str
    sampler_seed: int
    pruner: str
    overrides: Any  # once resolved: a tuple of texts, without those that are spaces
    space: Any  # once resolved: values to search as text, by key


@dataclass(frozen=True, kw_only=True)
class InferenceSettings:
    """Keys of the commands by which a checkpoint classifies pictures."""

    ckpt: str
    topk: int
    tta: int | None
    accelerator: str
    precision: str | None


@dataclass(frozen=True, kw_only=True)
class PredictSettings(InferenceSettings):
    """What predict.py does: the keys of conf/predict.yaml."""

    images: Any  # once resolved: a tuple of texts
    output_dir: str | None
    save_probs: bool
    show: bool


@dataclass(frozen=True, kw_only=True)
class ServeSettings(InferenceSettings):
    """What serve.py does: the keys of conf/serve.yaml."""

    host: str
    port: int
    max_mb: float
    max_files: int
    max_pixels: int
    max_waiting: int
    wait_ms: float


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What export.py does: the keys of conf/export.yaml."""

    ckpt: str
    format: str
    output_dir: str | None


def _schema_of(settings: type) -> type:
    """The types of settings as a schema of Hydra's, which cannot be frozen; conf/ has their values."""
    return make_dataclass(settings.__name__, [(key.name, key.type, MISSING) for key in fields(settings)])


REFUSED_TRAINER_ARGUMENTS = {
    "logger": "choose with logger=",
    "callbacks": "choose with callbacks=",
    "default_root_dir": "choose the run's folder with output_dir=",
    "enable_checkpointing": "every run writes its checkpoints",
    "plugins": "the project sets them",
    "barebones": "benchmarks/loops.py measures the Trainer's cost",
    "model_registry": "checkpoints are local files",
}
"""Trainer arguments that the project sets itself, and what to use instead."""


def groups_of(config_name: str) -> list[str]:
    """Names of the groups of choices that an entry has: folders of conf/ that its file names."""
    primary = (CONF / f"{config_name}.yaml").read_text(encoding="utf-8")
    return [folder.name for folder in sorted(CONF.iterdir()) if f"- {folder.name}:" in primary]


def keys_of(config_name: str) -> list[str]:
    """Names of the top-level keys that an entry's file sets."""
    primary = (CONF / f"{config_name}.yaml").read_text(encoding="utf-8")
    return re.findall(r"^(\w+):", primary, re.MULTILINE)


def compose(*overrides: str, config_name: str = "train") -> DictConfig:
    """A config as the command line would compose it, for notebooks, scripts and tests.

    Args:
        overrides: What would be typed, such as ``experiment=speedrun``.
        config_name: Name of the entry, such as ``train`` or ``evaluate``.
    """
    running = GlobalHydra.instance().hydra  # that of the command line, if this is called while a command runs
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose(config_name, as_texts(overrides))
    finally:
        if running is not None:
            GlobalHydra.instance().initialize(running)


def run_folder(name: str) -> str:
    """A new folder for a run: ``logs/<name>/<time>``."""
    return f"logs/{name}/{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"


def _first(*values: Any) -> Any:
    """The first folder that is not null, from the home folder where it says so: ``${first:${output_dir},logs}``."""
    folder = next((value for value in values if value is not None), None)
    return expanded("output_dir", folder) if isinstance(folder, str) else folder


# At import, so that whoever composes a config with this package finds them there.
ConfigStore.instance().store(name="train_schema", node=TrainSchema)
ConfigStore.instance().store(name="evaluate_schema", node=EvaluateSchema)
ConfigStore.instance().store(name="compare_schema", node=CompareSchema)
ConfigStore.instance().store(name="search_schema", node=_schema_of(SearchSettings))
ConfigStore.instance().store(name="predict_schema", node=_schema_of(PredictSettings))
ConfigStore.instance().store(name="export_schema", node=_schema_of(ExportSettings))
ConfigStore.instance().store(name="serve_schema", node=_schema_of(ServeSettings))
OmegaConf.register_new_resolver("first", _first, replace=True)
