"""The data of a run: splits, placement and batches."""

import inspect
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from jaxtyping import Int64
from torch import Tensor

from cifar_lightning.data.arrays import Arrays, Dataset, fetch, to_arrays
from cifar_lightning.data.batches import Augment, Batches

SPLITS = ("train", "val", "test")


def stratified_split(
    targets: Int64[Tensor, " n"], *, val_size: int, seed: int
) -> tuple[Int64[Tensor, " t"], Int64[Tensor, " v"]]:
    """Indices of the training and of the validation images, both ascending.

    Each class gives its share of ``val_size``; where shares are not whole, the largest remainders are rounded up.

    Raises:
        ValueError: If ``val_size`` is not in [0, N).
    """
    if not 0 <= val_size < len(targets):
        raise ValueError(f"val_size must be in [0, {len(targets)}), got {val_size}")
    counts = torch.bincount(targets)
    shares = counts * val_size // len(targets)
    remainders = counts * val_size % len(targets)
    shares[remainders.argsort(descending=True, stable=True)[: val_size - int(shares.sum())]] += 1

    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(targets), generator=generator)
    by_class = [shuffled[targets[shuffled] == k] for k in range(len(counts))]
    val = torch.cat([members[:share] for members, share in zip(by_class, shares.tolist(), strict=True)])
    is_val = torch.zeros(len(targets), dtype=torch.bool)
    is_val[val] = True
    return (~is_val).nonzero().flatten(), is_val.nonzero().flatten()


class ImageDataModule(L.LightningDataModule):
    """CIFAR-10, or a data set of its form, in the memory of the device that trains.

    The official test images stay the test split. Validation images come off the training images, chosen by
    ``split_seed`` alone, so that runs with other seeds are judged on the same ones.

    Args:
        name: Name of the data set, as in conf/data.
        dataset: Class of the data set, called as ``dataset(root=..., train=..., download=...)``.
        root: Folder of the data; None for a data set that needs none.
        urls: Addresses that the data are fetched from where they are absent, for classes that take them.
        image_size: Height and width that images are resized to, in pixels, for classes that take it.
        note: What a reader of results must know about the data.
        batch_size: Training images per optimizer step.
        eval_batch_size: Images per step where nothing is trained.
        val_size: Number of training images set aside for validation; 0 trains on all. None for the validation images
            that the data set brings itself, if it does: its training images' last ``num_val``.
        split_seed: Seed of that choice.
        seed: Seed of the order and of the augmentation.
        augment: Changes each batch of training images.

    Raises:
        ValueError: If a size is out of its range.
    """

    def __init__(
        self,
        *,
        name: str,
        dataset: Dataset,
        root: str | None,
        urls: Sequence[str] | None = None,
        image_size: int | None = None,
        note: str = "",
        batch_size: int = 4,
        eval_batch_size: int = 500,
        val_size: int | None = 0,
        split_seed: int = 0,
        seed: int = 0,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        for key, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("val_size", val_size or 0, 0),
            ("split_seed", split_seed, 0),
        ):
            if value < least:
                raise ValueError(f"{key} must be at least {least}, got {value}")
        self.name = name
        self.dataset = dataset
        self.root = root
        takes = inspect.signature(dataset).parameters
        self.options = {
            name: value
            for name, value in {"urls": urls, "image_size": image_size}.items()
            if value is not None and name in takes
        }
        self.note = note
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.seed = seed
        self.augment = augment
        self._arrays: dict[bool, Arrays] = {}
        self._placed: dict[tuple[bool, torch.device], Arrays] = {}
        self._num_val = 0  # that the data set brings itself
        self.index: dict[str, Tensor] = {}

    def prepare_data(self) -> None:
        if not self._arrays:  # the smaller split is enough to have everything downloaded
            self._read(train=False)

    def _read(self, *, train: bool) -> None:
        dataset = fetch(self.dataset, root=self.root, train=train, **self.options)
        self._arrays[train] = to_arrays(dataset)
        if train:
            self._num_val = getattr(dataset, "num_val", 0)

    def setup(self, stage: str | None = None) -> None:
        """Read both official splits and choose the validation images.

        Raises:
            ValueError: If ``batch_size`` is larger than the training split, or ``val_size`` not below the number of
                training images or given where the data set brings validation images.
        """
        if self.index:
            return
        for train in (True, False):
            if train not in self._arrays:
                self._read(train=train)
        train_index, val_index = self._split()
        if self.batch_size > len(train_index):
            raise ValueError(
                f"batch_size must be at most the {len(train_index)} training images, got {self.batch_size}"
            )
        self.index = {"train": train_index, "val": val_index, "test": torch.arange(len(self.arrays("test").targets))}

    def _split(self) -> tuple[Tensor, Tensor]:
        targets = self._arrays[True].targets
        if not self._num_val:
            return stratified_split(targets, val_size=self.val_size or 0, seed=self.split_seed)
        if self.val_size is not None:
            raise ValueError(
                f"val_size must be null where the data bring validation images of their own, here {self._num_val}, "
                f"got {self.val_size}"
            )
        train_index, val_index = torch.arange(len(targets)).tensor_split([len(targets) - self._num_val])
        return train_index, val_index

    def arrays(self, split: str) -> Arrays:
        """Images and targets that ``index[split]`` points into."""
        return self._arrays[split != "test"]

    def placed(self, split: str, device: torch.device | str) -> Arrays:
        """``arrays(split)`` on a device, copied there once and held there."""
        key = split != "test", torch.device(device)
        if key not in self._placed:
            self._placed[key] = self.arrays(split).to(device)
        return self._placed[key]

    def targets(self, split: str) -> Int64[Tensor, " n"]:
        """Targets of a split's images, in the order of ``eval_batches(split)``."""
        return self.arrays(split).targets[self.index[split]]

    @property
    def has_val(self) -> bool:
        """Whether there are validation images; known after ``setup``."""
        return len(self.index["val"]) > 0

    @property
    def image_shape(self) -> torch.Size:
        """Shape (C, H, W) of an image."""
        return self.arrays("train").images.shape[1:]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.arrays("train").classes

    def eval_batches(self, split: str, device: torch.device | str = "cpu") -> Batches:
        """A split's images as they are, in the data set's order."""
        return Batches(self.placed(split, device), self.index[split], batch_size=self.eval_batch_size)

    def train_batches(self, device: torch.device | str = "cpu", *, shuffle: bool = True) -> Batches:
        """The training images, augmented, and shuffled if so wished."""
        return Batches(
            self.placed("train", device),
            self.index["train"],
            batch_size=self.batch_size,
            seed=self.seed if shuffle else None,
            augment=self.augment,
        )

    @property
    def _device(self) -> torch.device:
        assert self.trainer is not None
        return self.trainer.strategy.root_device

    def train_dataloader(self) -> Batches:
        assert self.trainer is not None
        # Lightning's overfit_batches means the same few batches in each epoch.
        return self.train_batches(self._device, shuffle=not self.trainer.overfit_batches)  # type: ignore[attr-defined]

    def val_dataloader(self) -> Batches | list[Batches]:
        return self.eval_batches("val", self._device) if self.has_val else []

    def test_dataloader(self) -> Batches:
        return self.eval_batches("test", self._device)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        # Batches are on the device from the start: spares Lightning's walk over each batch.
        return batch
