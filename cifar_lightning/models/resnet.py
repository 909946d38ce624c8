"""torchvision's ResNet-18: one for small images, and one with ImageNet weights."""

import hashlib
from pathlib import Path
from urllib.parse import urlparse

import torch
import torch.nn.functional as F
import torchvision
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights


class ResNet18(torchvision.models.ResNet):
    """torchvision's ResNet-18 for images of about 32x32, with a 3x3 stem of stride 1 and no max-pooling after it.

    11,173,962 parameters for 3 channels and 10 classes.

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images.

    Source: He et al. 2016 (arXiv:1512.03385); section 4.2 and kuangliu/pytorch-cifar for the stem.
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()
        # With filters in channels_last every convolution runs in that layout, whatever the layout of the images. It is
        # faster on CPUs (no reordering into blocks) and on GPUs (tensor cores).
        self.to(memory_format=torch.channels_last)


class ResNet18ImageNet(nn.Module):
    """torchvision's ResNet-18 with a new head; ``load_pretrained`` loads the ImageNet weights.

    The constructor downloads nothing, so that a checkpoint can be evaluated without a network connection.

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images; must be 3.
        image_size: Height and width in pixels, in [32, 1024]; the network resizes its images to this size.

    Raises:
        ValueError: If an argument is out of its range.
    """

    weights = ResNet18_Weights.DEFAULT

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3, image_size: int = 224) -> None:
        super().__init__()
        if in_channels != 3:
            raise ValueError(f"in_channels must be 3, as in ImageNet, got {in_channels}")
        if not 32 <= image_size <= 1024:
            raise ValueError(f"image_size must be in [32, 1024], got {image_size}")
        self.image_size = image_size
        self.resnet = torchvision.models.resnet18(weights=None)
        self.resnet.fc = nn.Linear(self.resnet.fc.in_features, num_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        size = (self.image_size, self.image_size)
        return self.resnet(F.interpolate(images, size, mode="bilinear", antialias=True))

    def load_pretrained(self) -> None:
        """Load the ImageNet weights of all layers except the head; download them if they are not cached.

        Raises:
            OSError: If the weights are neither cached nor can be downloaded, or if their file is damaged.
        """
        name = Path(urlparse(self.weights.url).path).name
        file = Path(torch.hub.get_dir()) / "checkpoints" / name
        try:
            # torch.hub checks the hash of a download, but not of a cached file; that is checked below.
            state = self.weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
        except Exception as error:  # URLError, a wrong hash, or any error of unpickling a damaged file
            if file.exists():
                raise OSError(f"{file} is damaged, delete it ({type(error).__name__})") from error
            raise OSError(
                f"the ImageNet weights could not be downloaded from {self.weights.url} ({error}): "
                f"put {name} into {file.parent}"
            ) from error
        expected = name.rpartition("-")[2].removesuffix(".pth")  # the name ends with the first digits of the SHA-256
        if not hashlib.sha256(file.read_bytes()).hexdigest().startswith(expected):
            raise OSError(f"{file} is damaged, delete it (its SHA-256 does not begin with {expected})")
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
        missing, unexpected = self.resnet.load_state_dict(state, strict=False)
        assert set(missing) == {"fc.weight", "fc.bias"}
        assert not unexpected
