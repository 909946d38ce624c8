"""The networks of torchvision for classification, by the names of its registry."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
import torchvision
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import ResNet, WeightsEnum

from cifar_lightning import models  # which imports this file: its names are there once a function is called
from cifar_lightning.errors import nearest

MAX_IMAGE_SIZE = 1024


class TorchvisionNet(nn.Module):
    """A network of ``torchvision.models``, such as ``efficientnet_b0``, with a head for the data's classes.

    The constructor downloads nothing, so that a checkpoint can be read without a network connection: ``pretrained``
    only says that training is to start from ImageNet weights, which ``take_weights`` loads.

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images: 3, or 1, which all three inputs then get.
        arch: Name in torchvision's registry; ``torchvision.models.list_models(torchvision.models)`` lists them.
        pretrained: Whether training starts from torchvision's ImageNet weights.
        image_size: Height and width in pixels, in [32, 1024]; the network resizes its images to this size. None leaves
            them as they are.
        stem: ``imagenet`` as published. ``small`` for a ResNet of images of about 32x32: a 3x3 convolution of stride 1
            and no pooling after it, which has no pretrained weights.

    Raises:
        ValueError: If an argument is out of its range, or the network cannot be built for the size.

    Source: kuangliu/pytorch-cifar for the small stem.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        arch: str = "resnet18",
        pretrained: bool = False,
        image_size: int | None = None,
        stem: Literal["imagenet", "small"] = "imagenet",
    ) -> None:
        super().__init__()
        if in_channels not in (1, 3):
            raise ValueError(f"in_channels must be 1 or 3, got {in_channels}")
        if image_size is not None and not 32 <= image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size must be in [32, {MAX_IMAGE_SIZE}] or null, got {image_size}")
        self.arch, self.pretrained, self.image_size, self.stem = arch, pretrained, image_size, stem
        self.net = _built(arch, num_classes, pretrained=pretrained, image_size=image_size)
        if stem == "small":
            if not isinstance(self.net, ResNet):
                raise ValueError(f"stem=small is for ResNets, {arch} is a {type(self.net).__name__}: use stem=imagenet")
            self.net.conv1 = nn.Conv2d(3, self.net.conv1.out_channels, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.net.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.net.maxpool = nn.Identity()
        # In this layout of the filters every convolution runs in it, which is faster on CPUs and on GPUs.
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        if self.image_size is not None:
            images = F.interpolate(images, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        return self.net(images.expand(-1, 3, -1, -1))

    @property
    def weights(self) -> WeightsEnum:
        """The best ImageNet weights that torchvision has of the network."""
        return torchvision.models.get_model_weights(self.arch).DEFAULT

    def take_weights(self, state: Mapping[str, Tensor]) -> list[str]:
        """Load ImageNet weights, but for the head, and a small stem.

        Args:
            state: The state dictionary of torchvision's file.

        Returns:
            Names of the parameters that are not loaded, of which training starts anew.

        Raises:
            ValueError: If a name or a shape is not what the network has.
        """
        own = self.net.state_dict()
        new = self._head() | ({"conv1.weight"} if self.stem == "small" else set())
        state = {name: value for name, value in state.items() if name not in new and not _is_auxiliary(name, own)}
        for name in sorted((own.keys() - new) | state.keys()):
            shapes = [tuple(values[name].shape) if name in values else "missing" for values in (state, own)]
            if shapes[0] != shapes[1]:
                size = self.weights.transforms.keywords["crop_size"]
                raise ValueError(
                    f"{name} is {shapes[0]} in {self.arch}'s pretrained weights and {shapes[1]} in the network; they "
                    f"are of image_size={size}, got {self.image_size}"
                )
        self.net.load_state_dict(state, strict=False)
        return sorted(new)

    def _head(self) -> set[str]:
        """Names in torchvision's own network; see ``models.head_of``."""
        names = models.head_of("torchvision", num_classes=2, in_channels=3, arch=self.arch, image_size=self.image_size)
        return {name.removeprefix("net.") for name in names}


def _built(arch: str, num_classes: int, *, pretrained: bool, image_size: int | None) -> nn.Module:
    names = torchvision.models.list_models(module=torchvision.models)
    if arch not in names:
        raise ValueError(f"arch must be a name of torchvision's registry, got {arch!r}{nearest(str(arch), names)}")
    options: dict[str, Any] = {}
    if arch in ("googlenet", "inception_v3"):  # their second heads are for training from nothing, as published
        options = {"aux_logits": False, "init_weights": True, "transform_input": pretrained}
    if arch.startswith(("vit", "maxvit")):
        if image_size is None:
            raise ValueError(f"image_size must be a number for {arch}, whose layers depend on it, got null")
        options = {"image_size": image_size} if arch.startswith("vit") else {"input_size": (image_size, image_size)}
    try:
        return torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **options)
    except NotImplementedError:  # RegNet computes its widths with tensors, which a device without memory cannot
        place = torch.get_default_device()
        with torch.device("cpu"):
            return torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **options).to(place)
    except AssertionError as error:  # of vision transformers
        raise ValueError(f"image_size={image_size} is not one that {arch} can be built for: {error}") from error


def _is_auxiliary(name: str, own: Mapping[str, Tensor]) -> bool:
    """Whether a weight is of the second heads of GoogLeNet or Inception, which the network does not have."""
    return name not in own and name.startswith(("aux1.", "aux2.", "AuxLogits."))
