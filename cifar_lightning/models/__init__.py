"""The networks, by name: ``images (N, C, H, W) float, normalised -> logits (N, K)``."""

import difflib
import inspect
from typing import Any

from torch import nn

from cifar_lightning.models.resnet import ResNet18, ResNet18ImageNet
from cifar_lightning.models.speedrun import SpeedrunNet
from cifar_lightning.models.tutorial import TutorialCNN
from cifar_lightning.typehints import fits, words

NETWORKS: dict[str, type[nn.Module]] = {
    "tutorial": TutorialCNN,
    "resnet18": ResNet18,
    "resnet18_imagenet": ResNet18ImageNet,
    "speedrun": SpeedrunNet,
}
"""The command line and checkpoints choose from this table, so that no file ever names code to run."""


def build(name: str, *, num_classes: int, in_channels: int, **arguments: Any) -> nn.Module:
    """A network by its name, with fresh weights.

    Args:
        name: Key of ``NETWORKS``.
        num_classes: Number of outputs, in [2, 10,000].
        in_channels: Channels of the images, in [1, 64].
        arguments: What else the network's constructor takes.

    Raises:
        ValueError: If the name or an argument is unknown, or a value is out of its range. Values may come from a
            checkpoint that anyone made, so sizes are checked before anything is allocated.
    """
    if name not in NETWORKS:
        close = difflib.get_close_matches(str(name), NETWORKS, n=1)
        raise ValueError(
            f"name must be one of {', '.join(NETWORKS)}, got {name!r}"
            + (f"; did you mean {close[0]}?" if close else "")
        )
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
