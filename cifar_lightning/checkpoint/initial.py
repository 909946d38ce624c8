"""The weights of a checkpoint as the start of another training."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifar_lightning import models
from cifar_lightning.checkpoint.format import read
from cifar_lightning.config.overrides import quoted
from cifar_lightning.config.resolve import as_plain
from cifar_lightning.errors import UserError, listed

log = logging.getLogger(__name__)

_OF_DATA = ("num_classes", "in_channels")
"""Arguments of a network that the data decide."""


def load_initial(
    path: str | Path, net: nn.Module, *, model: Mapping[str, Any], normalize: Mapping[str, Any], classes: Sequence[str]
) -> None:
    """Load the weights of a checkpoint into a network that is to be trained, but for the head where the classes differ.

    The head is what the number of classes decides the shape of. A network is no other one for other pixels, so the
    normalisation must be the checkpoint's.

    Args:
        path: Of the checkpoint, which passes the same checks as each that is evaluated.
        net: The network, with new weights.
        model: Its name and arguments.
        normalize: Mean and standard deviation that its images will have been normalised with.
        classes: Names of the classes it will be trained on.

    Raises:
        UserError: If the checkpoint cannot be used, or is of another network or normalisation.
    """
    checkpoint = read(path)
    before = checkpoint["settings"]
    _check_same(path, before, model, normalize)
    prefix = "net."
    weights: dict[str, Tensor] = {
        name.removeprefix(prefix): value for name, value in checkpoint["state_dict"].items() if name.startswith(prefix)
    }
    same_classes = list(classes) == before["classes"]
    head = set() if same_classes else models.head_of(**model)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items() if name not in head}
    found = {name: tuple(value.shape) for name, value in weights.items() if name not in head}
    if shapes != found:
        wrong = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
        raise UserError(f"init={path}: the weights do not fit the network, {listed(wrong)}")
    with torch.no_grad():
        net.load_state_dict({name: value for name, value in weights.items() if name not in head}, strict=False)
    rest = f"the head is new, for {len(classes)} other classes" if head else "the head among them"
    log.info("init      weights of %s, seed %s, from %s; %s", before["name"], before["seed"], path, rest)


def _check_same(
    path: str | Path, before: Mapping[str, Any], model: Mapping[str, Any], normalize: Mapping[str, Any]
) -> None:
    """Raise UserError where a network or its normalisation is another; says what to type."""
    # What the data decide is looked at by itself, and whether a network once began with ImageNet weights is history.
    ours, theirs = (
        {
            key: value
            for key, value in {**models.defaults(section["name"]), **as_plain(section)}.items()
            if key not in (*_OF_DATA, "pretrained")
        }
        for section in (model, before["model"])
    )
    if ours != theirs:
        typed = " ".join(
            f"model={value}" if key == "name" else f"model.{key}={quoted(value)}"
            for key, value in theirs.items()
            if ours.get(key) != value
        )
        got = f"model={model['name']}"
        also = "" if ours["name"] == theirs["name"] else f", and leave out arguments of {got}, also by an experiment="
        raise UserError(f"init={path} is of another network, got {got}; type {typed}{also}")
    channels = before["model"]["in_channels"]
    if model["in_channels"] != channels:
        raise UserError(f"init={path} is of images of {channels} channels, the data have {model['in_channels']}")
    for key in ("mean", "std"):
        numbers = [torch.tensor(section[key], dtype=torch.float64) for section in (normalize, before["normalize"])]
        one, other = torch.broadcast_tensors(*numbers)
        if not torch.allclose(one, other, atol=1e-6):
            mean, std = (quoted(before["normalize"][name]) for name in ("mean", "std"))
            raise UserError(
                f"init={path} is of images that were normalised otherwise, got normalize.{key}="
                f"{quoted(as_plain(normalize[key]))}; type normalize.mean={mean} normalize.std={std}"
            )
