"""A checkpoint, or a file exported from one, as a classifier."""

from pathlib import Path
from typing import Any

import torch

from cifar_lightning import models
from cifar_lightning.checkpoint.exported import SUFFIXES, read_exported
from cifar_lightning.checkpoint.format import read, refuse_address
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.errors import UserError, one_line


def is_exported(path: str | Path) -> bool:
    """Whether a file is one that export.py wrote, by the end of its name."""
    return Path(path).suffix in SUFFIXES


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a checkpoint or an exported file.

    Raises:
        UserError: If the file cannot be used.
    """
    return load_classifier(path)[1]["settings"] if is_exported(path) else read(path)["settings"]


def load_classifier(path: str | Path) -> tuple[ImageClassifier, dict[str, Any]]:
    """The classifier of a checkpoint or of an exported file, ready to classify images.

    Returns:
        The classifier, of an exported file an ``ExportedClassifier``; and what is in the file, with ``settings``.

    Raises:
        UserError: If the file is refused, or what it describes cannot be built.
    """
    if is_exported(path):
        refuse_address(path)
        return read_exported(Path(path))
    checkpoint = read(path)
    settings = checkpoint["settings"]
    try:
        with torch.device("meta"):  # nothing is allocated: the file's own tensors become the weights
            net = models.build(**settings["model"])
            classifier = ImageClassifier(net, mean=settings["normalize"]["mean"], std=settings["normalize"]["std"])
        classifier.load_state_dict(checkpoint["state_dict"], assign=True)  # in the precision they were trained in
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"{path}: the network it describes cannot be built: {one_line(error)}") from error
    num_classes = settings["model"].get("num_classes")
    if len(settings["classes"]) != num_classes:
        raise UserError(f"{path}: {len(settings['classes'])} class names for {num_classes} outputs")
    classifier.temperature = checkpoint.get("temperature")
    return classifier.eval(), checkpoint
