"""Data sets as arrays in memory, their splits, and their batches."""

from cifar_lightning.data.batches import Augment, Batches
from cifar_lightning.data.datamodule import CIFAR10DataModule
from cifar_lightning.data.sources import Arrays

__all__ = ["Arrays", "Augment", "Batches", "CIFAR10DataModule"]
