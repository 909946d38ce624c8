"""torchvision's ResNet-18 for small images."""

import torch
import torchvision
from torch import nn


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
