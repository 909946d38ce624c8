"""What a run is made of, from its config, and whether the parts fit each other."""

from typing import Any

import torch

from cifar_lightning import models
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.config.build import blame, build
from cifar_lightning.config.resolve import AUTO, take_measured
from cifar_lightning.data import ImageDataModule, channel_statistics
from cifar_lightning.device import forward_flops
from cifar_lightning.errors import UserError, one_line
from cifar_lightning.typehints import fits

NUM_CHECKED_EPOCHS = 1_000
"""Epochs whose augmentation is tried before training, at most: ``trainer.max_epochs`` may stand for "no end"."""


def build_data(config: dict[str, Any]) -> ImageDataModule:
    """The data and their augmentation; nothing is read yet.

    Raises:
        UserError: If an argument is out of its range.
    """
    augment = config["augment"]
    if augment and augment.get("mean") == AUTO:  # to refuse a bad value of another key before the data are read
        augment = augment | {"mean": [0.5]}
    return build(config["data"], "data", augment=build(augment, "augment") if augment else None, seed=config["seed"])


def read_data(data: ImageDataModule, config: dict[str, Any]) -> None:
    """Read the data, downloading them where they are absent.

    Raises:
        UserError: If they cannot be had, or the config does not fit them.
    """
    with blame("data", config["data"]):
        data.prepare_data()
        data.setup()


def measure(config: dict[str, Any], data: ImageDataModule) -> None:
    """Put the training images' own mean and standard deviation where ``normalize`` says auto."""
    if AUTO not in config["normalize"].values():
        return
    mean, std = channel_statistics(data.arrays("train").images[data.index["train"]])
    take_measured(config, {"normalize": {"mean": mean, "std": std}})
    if config["augment"]:
        data.augment = build(config["augment"], "augment")


def build_classifier(
    config: dict[str, Any], data: ImageDataModule, *, pretrained: bool, **hyper_parameters: Any
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


def image_shapes(config: dict[str, Any], data: ImageDataModule) -> list[torch.Size]:
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
