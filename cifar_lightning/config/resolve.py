"""From a composed config to settings: resolved and checked once, then frozen."""

import dataclasses
import functools
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cifar_lightning.config.overrides import expanded
from cifar_lightning.config.schema import CONF, run_folder
from cifar_lightning.device import MAX_THREADS
from cifar_lightning.errors import UserError, one_line
from cifar_lightning.typehints import fits

Section = Mapping[str, Any]
"""A part of a config: plain values by name, read-only."""

AUTO = "auto"
"""In ``normalize``: measured on the training images. In ``trainer.precision``: what is fast on the device."""

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""What ``compile=`` takes besides true and false: the modes of ``torch.compile``."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What train.py does: the keys of conf/train.yaml; once the data are known, what settings say of them, too.

    Sections are read-only; ``as_plain`` gives a copy of plain dictionaries and lists, which a checkpoint stores.
    """

    name: str
    seed: int
    output_dir: str
    resume: str | None
    init: str | None
    num_threads: int | None
    compile: bool | str
    label_smoothing: float
    class_weights: str | None
    freeze: tuple[tuple[str, float], ...]
    freeze_trunk: float
    tta: int
    data: Section
    normalize: Section
    augment: Section | None
    model: Section
    optimizer: Section
    schedule: Section | None
    callbacks: Section | None
    logger: Section | None
    checkpoint: Section
    trainer: Section
    classes: tuple[str, ...] = ()
    image_size: tuple[int, ...] = ()
    fingerprint: Mapping[str, str] = dataclasses.field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """What evaluate.py does: the keys of conf/evaluate.yaml."""

    ckpt: str
    split: str
    output_dir: str | None
    tta: int
    num_threads: int | None
    compile: bool | str
    other_sets: tuple[str, ...]
    corruptions: bool
    data: Section
    trainer: Section


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the data and the machine decide.

    Attributes:
        classes: Names of the classes.
        fingerprint: Texts that tell the images and their split from others; see ``ImageDataModule.fingerprint``.
        in_channels: Channels of the images.
        image_size: Height and width of the images before augmentation, in pixels.
        mean: Mean of the training pixels per channel, in [0, 1]; None where it is not measured.
        std: Standard deviation likewise.
        precision: Lightning's name of the precision that the device computes in.
        num_threads: CPU threads that suit the size of a step.
    """

    classes: tuple[str, ...]
    fingerprint: dict[str, str]
    in_channels: int
    image_size: tuple[int, int]
    mean: list[float] | None
    std: list[float] | None
    precision: str
    num_threads: int


def resolve(cfg: DictConfig) -> Settings:
    """The settings of a training run: every interpolation resolved, every value checked that needs no data.

    Raises:
        UserError: If a key has no value, or one that is out of its range.
    """
    config = plain(with_folder(cfg))
    _check_shared(config)
    _check_training(config)
    put_in_home(config, "output_dir", "init", "data.root")
    return Settings(**frozen(config))


def with_folder(cfg: DictConfig) -> DictConfig:
    """A training config with the run's folder, to which other keys point; a copy where it has none yet.

    Raises:
        UserError: If ``resume`` is auto and there is no folder to look into.
    """
    if cfg.output_dir is not None:
        folder = expanded("output_dir", cfg.output_dir)
        if folder == cfg.output_dir:
            return cfg
    elif cfg.resume == "auto":
        raise UserError("resume=auto resumes the run in output_dir, if there is one: set output_dir=FOLDER too")
    else:
        folder = expanded("resume", cfg.resume) if cfg.resume else run_folder(cfg.name)
    return typing.cast(DictConfig, OmegaConf.merge(cfg, {"output_dir": folder}))


def resolve_evaluation(cfg: DictConfig) -> EvaluateSettings:
    """The settings of an evaluation; see ``resolve``.

    Raises:
        UserError: If a key has no value, or one that is out of its range.
    """
    config = plain(cfg)
    _check_shared(config)
    if config["split"] not in ("val", "test"):
        raise UserError(f"split must be val or test, got {config['split']}")
    put_in_home(config, "output_dir", "ckpt", "data.root")
    config["other_sets"] = [expanded("other_sets", name) for name in _names(config["other_sets"])]
    return EvaluateSettings(**frozen(config))


def _names(other_sets: Any) -> list[str]:
    """The other test sets that are asked for; a single one need not be a list."""
    names = [] if other_sets is None else other_sets if isinstance(other_sets, list) else [other_sets]
    if not fits(names, list[str | int | float]) or "" in names:
        raise UserError(
            "other_sets must be auto, null, the name of a set, a folder of images or a list of these, as in "
            f"[CIFAR-10.1,photos], got {other_sets!r}"
        )
    return list(map(str, names))


def settle(config: Settings, facts: Facts) -> Settings:
    """The settings with all that the data and the machine decide; what was given stays as it is."""
    measured = {"mean": facts.mean, "std": facts.std}
    precision = facts.precision if config.trainer["precision"] == AUTO else config.trainer["precision"]
    return dataclasses.replace(
        config,
        classes=facts.classes,
        image_size=facts.image_size,
        fingerprint=frozen(facts.fingerprint),
        model=frozen({**config.model, "num_classes": len(facts.classes), "in_channels": facts.in_channels}),
        normalize=in_place_of_auto(config.normalize, measured),
        augment=config.augment and in_place_of_auto(config.augment, measured),
        trainer=frozen({**config.trainer, "precision": precision}),
        num_threads=config.num_threads or facts.num_threads,
    )


def in_place_of_auto(section: Section, measured: Mapping[str, Any]) -> Section:
    """A section with measured values wherever it says ``auto`` for them."""
    return frozen(
        {key: measured[key] if value == AUTO and key in measured else value for key, value in section.items()}
    )


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


def frozen(value: Any) -> Any:
    """Nested dictionaries and lists as read-only mappings and tuples."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: frozen(part) for key, part in value.items()})
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def as_plain(value: Any) -> Any:
    """The reverse of ``frozen``: a copy in plain dictionaries and lists; of settings a dictionary by key."""
    if dataclasses.is_dataclass(value):
        return {field.name: as_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: as_plain(part) for key, part in value.items()}
    return list(map(as_plain, value)) if isinstance(value, list | tuple) else value


def flattened(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and plain values of nested dictionaries."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _check_shared(config: dict[str, Any]) -> None:
    """Check the keys that training and evaluation share."""
    if config.get("name") == "":
        raise UserError("name must not be empty: give it a value, or leave it out")
    if config["num_threads"] is not None and not 1 <= config["num_threads"] <= MAX_THREADS:
        raise UserError(
            f"num_threads must be in [1, {MAX_THREADS}], or null for a sensible number, got {config['num_threads']}"
        )
    check_tta(config["tta"])
    if not isinstance(config["compile"], bool) and config["compile"] not in COMPILE_MODES:
        raise UserError(f"compile must be true, false or one of {', '.join(COMPILE_MODES)}, got {config['compile']}")
    for key in ("data", "trainer"):
        if not isinstance(config[key], dict):
            raise UserError(f"{key} must be one of the choices in conf/{key}, got {config[key]!r}")
    trainer = config["trainer"]
    if missing := sorted(_trainer_keys() - trainer.keys()):
        raise UserError(
            f"trainer lacks {', '.join(missing)}: a file of one's own in trainer/ builds upon the project's with "
            "defaults: [default, _self_]"
        )
    for key in ("accumulate_grad_batches", "check_val_every_n_epoch"):
        if isinstance(trainer[key], int) and trainer[key] < 1:
            raise UserError(f"trainer.{key} must be at least 1, got {trainer[key]}")
    if trainer["deterministic"] and trainer["benchmark"]:
        raise UserError(
            "trainer.benchmark must be false where trainer.deterministic is set, got true: cuDNN would choose its "
            "algorithms by their time"
        )


def put_in_home(config: dict[str, Any], *keys: str) -> None:
    """Put the home folder in place of ``~`` in paths of a config, by their dotted keys.

    Raises:
        UserError: If a path is empty, or ``~`` stands for nothing known.
    """
    for key in keys:
        section, name = (config[key.partition(".")[0]], key.partition(".")[2]) if "." in key else (config, key)
        if isinstance(path := section.get(name), str):
            if not path:
                raise UserError(f"{key} must not be empty: give it a value, or leave it out")
            section[name] = expanded(key, path)


def paths(key: str, value: Any, what: str) -> tuple[str, ...]:
    """Paths, of which one may be given as it is, and several as a list; ``~`` is the home folder.

    Args:
        key: That of the value.
        value: As it is given.
        what: What is allowed, in words.

    Raises:
        UserError: If it is something else, or there is none.
    """
    found = texts(key, value, what)
    if not found:
        raise UserError(f"{key} must be {what}, got {value!r}")
    return tuple(expanded(key, path) for path in found)


def texts(key: str, value: Any, what: str) -> tuple[str, ...]:
    """Texts likewise, of which there may be none."""
    found = [value] if isinstance(value, str | int | float) else value
    if not fits(found, list[str | int | float]):
        raise UserError(f"{key} must be {what}, got {value!r}")
    return tuple(map(str, found))


def check_tta(level: int | None, *, may_be_null: bool = False) -> None:
    """Raise UserError if a level of test-time augmentation is none."""
    if level not in (0, 1, 2) and not (level is None and may_be_null):
        rest = ", or null for the checkpoint's own" if may_be_null else ""
        raise UserError(f"tta must be 0 (none), 1 (mirror images) or 2 (mirrored and translated){rest}, got {level}")


@functools.cache
def _trainer_keys() -> set[str]:
    """Keys of conf/trainer/default.yaml: the Trainer's arguments, on which the project relies."""
    return {str(key) for key in OmegaConf.load(CONF / "trainer" / "default.yaml")}


def _check_training(config: dict[str, Any]) -> None:
    """Check the keys that are training's alone."""
    for key in ("normalize", "model"):
        if not isinstance(config[key], dict):
            raise UserError(f"{key} must be one of the choices in conf/{key}, got {config[key]!r}")
    for key in ("augment", "schedule", "callbacks", "logger"):
        if not isinstance(config[key], dict | None):
            raise UserError(f"{key} must be one of the choices in conf/{key} or null, got {config[key]!r}")
    if not fits(freeze := config["freeze"], list[tuple[str, float]]):
        raise UserError(f"freeze must be parts of the network and fractions, as in [[conv1,0.5]], got {freeze}")
    if not 0 <= config["freeze_trunk"] < 1:
        raise UserError(f"freeze_trunk must be in [0, 1), the share of the steps, got {config['freeze_trunk']}")
    for key, off in (("freeze", []), ("compile", False)):
        if config["freeze_trunk"] and config[key] != off:
            raise UserError(f"{key} must be {str(off).lower()} where freeze_trunk is above 0, got {config[key]}")
    if not 0 <= config["label_smoothing"] <= 1:
        raise UserError(f"label_smoothing must be in [0, 1], got {config['label_smoothing']}")
    if config["class_weights"] not in (None, "balanced"):
        raise UserError(f"class_weights must be balanced or null, got {config['class_weights']}")
    for name, value in config["normalize"].items():
        if value != AUTO and not fits(value, list[float]):
            raise UserError(f"normalize.{name} must be a list of numbers or auto, got {value!r}")
    saving = config["checkpoint"] if isinstance(config["checkpoint"], dict) else {}
    if not fits(every_minutes := saving.get("every_minutes"), float):
        raise UserError(f"checkpoint.every_minutes must be a finite number, got {every_minutes!r}")
    if not fits(every_epoch := saving.get("every_epoch"), bool):
        raise UserError(f"checkpoint.every_epoch must be true or false, got {every_epoch!r}")
