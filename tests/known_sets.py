"""The files of other test sets in their real formats, for a few images."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from conftest import CLASSES

from cifar_lightning.data import ImageDataModule


def data_of(root: Path | None, *, num_train: int = 40, num_test: int = 20, val_size: int = 10, **changes):
    """Data in CIFAR-10's form, noise with each class in turn, whose splits have been read."""

    def dataset(root: Path, train: bool = True, download: bool = False) -> SimpleNamespace:
        num = num_train if train else num_test
        pixels = np.random.default_rng(train).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)
        return SimpleNamespace(
            **{"data": pixels, "targets": [i % 10 for i in range(num)], "classes": CLASSES} | changes
        )

    data = ImageDataModule(name="cifar10", dataset=dataset, root=None if root is None else str(root), val_size=val_size)
    data.setup()
    return data


def write_new(root: Path, version: str, images: np.ndarray, labels: list[int]) -> None:
    np.save(root / f"cifar10.1_{version}_data.npy", images)
    np.save(root / f"cifar10.1_{version}_labels.npy", np.array(labels, dtype=np.int32))


def write_corrupted(root: Path, by_kind: dict[str, np.ndarray], labels: list[int]) -> None:
    """``by_kind``: five severities of all images, one after the other."""
    (root / "CIFAR-10-C").mkdir(exist_ok=True)
    for kind, images in by_kind.items():
        np.save(root / "CIFAR-10-C" / f"{kind}.npy", images)
    np.save(root / "CIFAR-10-C" / "labels.npy", np.tile(np.array(labels, dtype=np.uint8), 5))


def write_noisy(path: Path, **labels: list[int] | np.ndarray) -> None:
    """CIFAR-10N: what is not given is what is in ``clean_label``."""
    names = ("clean_label", "aggre_label", "worse_label", "random_label1", "random_label2", "random_label3")
    torch.save({name: np.array(labels.get(name, labels["clean_label"])) for name in names}, path)
