"""Data sets as arrays in memory, their splits, and their batches."""

from cifar_lightning.data.batches import Augment, Batches
from cifar_lightning.data.cifar import CIFAR10, CIFAR100
from cifar_lightning.data.datamodule import CIFAR10DataModule
from cifar_lightning.data.folder import ImageFolder
from cifar_lightning.data.sources import Arrays, channel_statistics, spread

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Arrays",
    "Augment",
    "Batches",
    "CIFAR10DataModule",
    "ImageFolder",
    "channel_statistics",
    "spread",
]
