"""The networks by name. Each maps ``images (N, C, H, W) float, normalised -> logits (N, K)``."""

import inspect
from typing import Any

import torch
from torch import nn

from cifar_lightning.errors import nearest
from cifar_lightning.models.resnet import ResNet18
from cifar_lightning.models.speedrun import SpeedrunNet
from cifar_lightning.models.torchvision_zoo import TorchvisionNet
from cifar_lightning.models.tutorial import TutorialCNN
from cifar_lightning.typehints import fits, words

NETWORKS: dict[str, type[nn.Module]] = {
    "tutorial": TutorialCNN,
    "resnet18": ResNet18,
    "speedrun": SpeedrunNet,
    "torchvision": TorchvisionNet,
}
"""The networks that the command line and checkpoints can name. A name is looked up here, so no file names code to run.

To add a network, write it in a file of this folder, add it here under its name, and add a file with its arguments to
conf/model. Its constructor takes ``num_classes`` and ``in_channels``, and all else, by keyword and with type hints. The
config and the command line are checked against them.
"""


def build(name: str, *, num_classes: int, in_channels: int, **arguments: Any) -> nn.Module:
    """Build a network by its name, with new weights.

    Args:
        name: Key of ``NETWORKS``.
        num_classes: Number of outputs, in [2, 10,000].
        in_channels: Channels of the images, in [1, 64].
        arguments: Other arguments of the network's constructor.

    Raises:
        ValueError: If the name or an argument is unknown, or a value is out of its range. Values may come from a
            checkpoint of unknown origin, so sizes are checked before memory is allocated.
    """
    if name not in NETWORKS:
        raise ValueError(f"name must be one of {', '.join(NETWORKS)}, got {name!r}{nearest(str(name), NETWORKS)}")
    sizes = {"num_classes": (num_classes, 2, 10_000), "in_channels": (in_channels, 1, 64)}
    for key, (value, least, most) in sizes.items():
        if not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"{key} must be a whole number in [{least}, {most}], got {value!r}")
    network = NETWORKS[name]
    parameters = inspect.signature(network).parameters
    for key, value in arguments.items():
        if key not in parameters:
            own = sorted(set(parameters) - set(sizes))
            raise ValueError(f"{key} is not an argument of {name}; it takes {', '.join(own) or 'none'}")
        hint = parameters[key].annotation
        if not fits(value, hint):
            raise ValueError(f"{key} must be {words(hint)}, got {value!r}")
    return network(num_classes=num_classes, in_channels=in_channels, **arguments)


def head_of(name: str, *, num_classes: int, in_channels: int, **arguments: Any) -> set[str]:
    """Names of a network's parameters and buffers whose shapes the number of classes decides.

    Args:
        name: Key of ``NETWORKS``.
        num_classes: Number of outputs.
        in_channels: Channels of the images.
        arguments: As in ``build``.
    """
    with torch.device("meta"):
        one, other = (
            build(name, num_classes=num, in_channels=in_channels, **arguments).state_dict()
            for num in (num_classes, 2 if num_classes != 2 else 3)
        )
    return {key for key, value in one.items() if value.shape != other[key].shape}


def defaults(name: str) -> dict[str, Any]:
    """The arguments that a network's constructor has values for, by name; none for a name that is unknown."""
    parameters = inspect.signature(NETWORKS[name]).parameters if name in NETWORKS else {}
    return {key: parameter.default for key, parameter in parameters.items() if parameter.default is not parameter.empty}
