"""Data sets as arrays in memory, their splits and their batches."""

from cifar_lightning.data.arrays import Arrays, balanced_weights, channel_statistics, spread
from cifar_lightning.data.batches import Augment, Batches
from cifar_lightning.data.cifar import CIFAR10, CIFAR100
from cifar_lightning.data.datamodule import ImageDataModule
from cifar_lightning.data.folder import ImageFolder

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Arrays",
    "Augment",
    "Batches",
    "ImageDataModule",
    "ImageFolder",
    "balanced_weights",
    "channel_statistics",
    "spread",
]
