"""What a run is made of, from its config: data, network, Trainer, and whether they fit one another."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from cifar_lightning import models
from cifar_lightning.callbacks import TrainingCurves
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.compilation import MODES
from cifar_lightning.config import UserError, blame, build, one_line, plain
from cifar_lightning.data import CIFAR10DataModule, channel_statistics
from cifar_lightning.devices import MAX_THREADS, forward_flops
from cifar_lightning.hints import fits
from cifar_lightning.precision import fast_precision
from cifar_lightning.progress import EpochProgress
from cifar_lightning.saving import RunCheckpoints
from cifar_lightning.trainer import build_trainer

NUM_CHECKED_EPOCHS = 1_000
"""Epochs whose augmentation is tried before training, at most: ``trainer.max_epochs`` may stand for "no end"."""

AUTO = "auto"
"""In ``normalize``: measured on the training split."""


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The plain config, with ``trainer.precision=auto`` replaced by what it stands for on this machine.

    Raises:
        UserError: If a key that training and evaluation share is out of its range.
    """
    config = plain(cfg)
    check_ranges(config)
    if config["trainer"]["precision"] == "auto":
        config["trainer"]["precision"] = fast_precision(config["trainer"]["accelerator"])
    return config


def check_ranges(config: dict[str, Any]) -> None:
    """Refuse values of keys that training and evaluation share.

    Raises:
        UserError: If one is out of its range.
    """
    if config["num_threads"] is not None and not 1 <= config["num_threads"] <= MAX_THREADS:
        raise UserError(
            f"num_threads must be in [1, {MAX_THREADS}], or null for a sensible number, got {config['num_threads']}"
        )
    if config["tta"] not in (0, 1, 2):
        raise UserError(f"tta must be 0 (none), 1 (mirror images) or 2 (six views), got {config['tta']}")
    if not isinstance(config["compile"], bool) and config["compile"] not in MODES:
        raise UserError(f"compile must be true, false or one of {', '.join(MODES)}, got {config['compile']}")


def build_full_trainer(config: dict[str, Any], curves: TrainingCurves) -> L.Trainer:
    """The Trainer that trains, with its callbacks, checkpoints and loggers.

    Raises:
        UserError: If one of them refuses its arguments.
    """
    callbacks: list[Callback] = [curves]
    if config["trainer"]["enable_progress_bar"] is not False:
        callbacks.append(EpochProgress(curves))
    for name, node in (config["callbacks"] or {}).items():
        if node is not None:
            callbacks.append(build(node, f"callbacks.{name}"))
    callbacks.append(_build_checkpoints(config))
    loggers = [build(node, f"logger.{name}") for name, node in (config["logger"] or {}).items() if node is not None]
    return build_trainer(config, callbacks=callbacks, logger=loggers)


def _build_checkpoints(config: dict[str, Any]) -> RunCheckpoints:
    node: Any = config["checkpoint"] if isinstance(config["checkpoint"], dict) else {}
    if not fits(every_minutes := node.get("every_minutes"), float):
        raise UserError(f"checkpoint.every_minutes must be a finite number, got {every_minutes!r}")
    if not fits(every_epoch := node.get("every_epoch"), bool):
        raise UserError(f"checkpoint.every_epoch must be true or false, got {every_epoch!r}")
    with blame("checkpoint", config["checkpoint"]):
        folder = Path(config["output_dir"]) / "checkpoints"
        return RunCheckpoints(folder, every_minutes=every_minutes, every_epoch=every_epoch)


def build_data(config: dict[str, Any]) -> CIFAR10DataModule:
    """The data and their augmentation; nothing is read yet.

    Raises:
        UserError: If an argument is out of its range.
    """
    augment = config["augment"]
    if augment and augment.get("mean") == AUTO:  # to refuse a bad value of another key before the data are read
        augment = augment | {"mean": [0.5]}
    return build(config["data"], "data", augment=build(augment, "augment") if augment else None, seed=config["seed"])


def read_data(data: CIFAR10DataModule, config: dict[str, Any]) -> None:
    """Read the data, downloading them where they are absent.

    Raises:
        UserError: If they cannot be had, or the config does not fit them.
    """
    with blame("data", config["data"]):
        data.prepare_data()
        data.setup()


def measure(config: dict[str, Any], data: CIFAR10DataModule) -> None:
    """Put the training images' own mean and standard deviation where ``normalize`` says auto."""
    if AUTO not in config["normalize"].values():
        return
    mean, std = channel_statistics(data.arrays("train").images[data.index["train"]])
    take_measured(config, {"normalize": {"mean": mean, "std": std}})
    if config["augment"]:
        data.augment = build(config["augment"], "augment")


def take_measured(config: dict[str, Any], measured: dict[str, Any]) -> None:
    """Put figures that have been measured into a config, wherever it says auto for them."""
    for node in (config["normalize"], config["augment"] or {}):
        for name, value in measured["normalize"].items():
            if node.get(name) == AUTO:
                node[name] = value


def build_classifier(
    config: dict[str, Any], data: CIFAR10DataModule, *, pretrained: bool, **hyper_parameters: Any
) -> ImageClassifier:
    """The network for these data, with loss and normalisation; what the data decide is put into the config.

    Raises:
        UserError: If an argument is out of its range, or the normalisation does not fit the images.
    """
    images = data.arrays("train").images
    with blame("model", config["model"]):
        # What the data decide goes into the config, so that a checkpoint is complete.
        config["model"] |= {"num_classes": len(data.classes), "in_channels": images.shape[1]}
        net = models.build(**config["model"])
        if pretrained and hasattr(net, "load_pretrained"):
            net.load_pretrained()  # type: ignore[operator]
    if not 0 <= config["label_smoothing"] <= 1:
        raise UserError(f"label_smoothing must be in [0, 1], got {config['label_smoothing']}")
    for name, value in config["normalize"].items():
        if not fits(value, list[float]):
            raise UserError(f"normalize.{name} must be a list of numbers or auto, got {value!r}")
    with blame("normalize", config["normalize"]):
        if len(config["normalize"]["mean"]) not in (1, images.shape[1]):
            raise ValueError(f"mean must have 1 or {images.shape[1]} numbers, got {config['normalize']['mean']}")
        return ImageClassifier(
            net,
            mean=config["normalize"]["mean"],
            std=config["normalize"]["std"],
            freeze=dict(config["freeze"]),
            label_smoothing=config["label_smoothing"],
            **hyper_parameters,
        )


def image_shapes(config: dict[str, Any], data: CIFAR10DataModule) -> list[torch.Size]:
    """Shapes (C, H, W) of the augmented images, by epoch; of the first ``NUM_CHECKED_EPOCHS`` at most.

    Raises:
        UserError: If the augmentation does not fit the images.
    """
    image = data.arrays("train").images[:1]
    max_epochs = config["trainer"]["max_epochs"]
    num_epochs = min(max_epochs, NUM_CHECKED_EPOCHS) if max_epochs and max_epochs > 0 else NUM_CHECKED_EPOCHS
    if data.augment is None:
        return [image.shape[1:]] * num_epochs
    with blame("augment", config["augment"]):
        return [data.augment(image, epoch, torch.Generator()).shape[1:] for epoch in range(num_epochs)]


def check_sizes(
    config: dict[str, Any], classifier: ImageClassifier, shapes: list[torch.Size], *, own_shape: torch.Size
) -> None:
    """Refuse, before a long run, images that do not fit the network, by themselves or as an epoch's augmentation."""
    for shape in set(shapes):
        try:
            forward_flops(classifier.net, torch.zeros(1, *shape))
        except RuntimeError as error:
            size, model = "x".join(map(str, shape)), f"model={config['model']['name']}"
            if shape == own_shape:
                raise UserError(f"{model} cannot take images of {size}: {one_line(error)}") from error
            raise UserError(
                f"augment: {model} cannot take the images of {size} that it makes in some epoch: {one_line(error)}"
            ) from error
