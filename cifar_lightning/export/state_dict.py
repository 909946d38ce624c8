"""The tutorial's own pair: ``torch.save(net.state_dict())`` and ``load_state_dict``."""

import io
from pathlib import Path

import torch

from cifar_lightning import models
from cifar_lightning.calibration import in_words
from cifar_lightning.export.check import Classify
from cifar_lightning.export.source import Source


def files(source: Source, name: str) -> dict[str, bytes]:
    """The file, of the given name: the network's weights alone."""
    content = io.BytesIO()
    torch.save(source.weights, content)
    return {name: content.getvalue()}


def opened(path: Path, source: Source) -> Classify:
    """What the network computes with the weights of the file."""
    return rebuilt(source, torch.load(path, weights_only=True))


def rebuilt(source: Source, weights: dict[str, torch.Tensor]) -> Classify:
    """A network with weights that a file holds, fed as ``usage`` says."""
    net = models.build(**source.settings["model"]).eval()
    net.load_state_dict(weights)
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (source.mean, source.std))
    return lambda images: net((images / 255 - mean) / std)


def usage(source: Source, path: Path) -> str:
    """Lines of Python that load the file and use it."""
    return loading(source, f"torch.load({str(path)!r}, weights_only=True)")


def loading(source: Source, load: str) -> str:
    """Lines of Python that build the network, load its weights and use it.

    Args:
        source: The checkpoint.
        load: Expression that gives the weights.
    """
    arguments = {key: value for key, value in source.settings["model"].items() if key != "name"}
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    divided = "" if source.temperature is None else f"\nprobabilities = (logits / {source.temperature!r}).softmax(1)"
    return f"""import torch
from cifar_lightning import models
net = models.build({source.settings["model"]["name"]!r}, {given}).eval()
net.load_state_dict({load})
mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in ({source.mean}, {source.std}))
logits = net((images / 255 - mean) / std)  # images: uint8 (N, C, H, W); the network wants them normalised
# probabilities are {in_words(source.temperature)}{divided}"""
