"""The data of a run: splits, placement and batches."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Int64
from torch import Tensor

from cifar_lightning import ranks
from cifar_lightning.data.arrays import Arrays, Dataset, declared_options, fetch, takes_pair, to_arrays
from cifar_lightning.data.batches import Augment, Batches
from cifar_lightning.data.checks import checked_num_val, files_of
from cifar_lightning.data.mapped import Gigabytes, gigabytes
from cifar_lightning.data.shards import DealtBatches, TrainingShards
from cifar_lightning.data.splits import fifth_of_each_class, stratified_split
from cifar_lightning.errors import listed, nearest
from cifar_lightning.typehints import fits, words

log = logging.getLogger(__name__)


class ImageDataModule(L.LightningDataModule):
    """CIFAR-10, CIFAR-100, a folder of images, or any class of torchvision's form, as batches on the training device.

    The official test images are the test split. Validation images come off the training images. ``split_seed`` alone
    chooses them, so that runs with different seeds are validated on the same images.

    A data set's own options, such as the ``urls`` of CIFAR-10, are keys of its file in conf/data. That file lists them
    in ``options``, and the class declares them in its attribute ``options``. A class that declares none, such as
    torchvision's own, gets none.

    Args:
        name: Name of the data set, as in conf/data.
        dataset: Class of the data set, called as ``dataset(root=..., train=..., download=..., **its own options)``.
        root: Folder of the data. None for a data set that needs none.
        options: Names of the keywords below that are options of the data set.
        note: What a reader of the results must know about the data.
        batch_size: Training images per optimizer step, at least 1.
        eval_batch_size: Images per step of evaluation, at least 1.
        val_size: Number of training images set aside for validation. 0 trains on all of them. None takes the
            validation images that the data set brings: the last ``num_val`` of its training images, if it has any.
            ``auto`` takes those too, or else a fifth of the training images of each class, rounded down.
        split_seed: Seed of the choice of validation images.
        seed: Seed of the order and of the augmentation.
        augment: Changes each batch of training images; see the attribute.
        values: Values of the options.

    Attributes:
        augment: Changes each batch of training images; None leaves them as they are. May be set until training starts:
            a run first measures mean and standard deviation of the training images, then builds its augmentation.
        index: Indices of each split's images in ``arrays(split)``, by split; empty before ``setup``.
        options: The options that the data set gets.

    Raises:
        TypeError: If a keyword is neither an argument nor one of ``options``.
        ValueError: If a size is out of its range, or an option has the wrong type.
    """

    def __init__(
        self,
        *,
        name: str,
        dataset: Dataset,
        root: str | None,
        options: Sequence[str] = (),
        note: str = "",
        batch_size: int = 4,
        eval_batch_size: int = 500,
        val_size: int | Literal["auto"] | None = 0,
        split_seed: int = 0,
        seed: int = 0,
        augment: Augment | None = None,
        **values: Any,
    ) -> None:
        super().__init__()
        for key, value, least in (
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
            ("val_size", val_size if isinstance(val_size, int) else 0, 0),
            ("split_seed", split_seed, 0),
        ):
            if value < least:
                raise ValueError(f"{key} must be at least {least}, got {value}")
        self.name = name
        self.dataset = dataset
        self.root = root
        self.options = _own_options(dataset, options, values)
        self._unused = sorted(values.keys() - self.options.keys())
        self.note = note
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.seed = seed
        self.augment = augment
        self.index: dict[str, Tensor] = {}
        self._arrays: dict[bool, Arrays] = {}  # by whether they are the training images
        self._placed: dict[tuple[bool, torch.device], Arrays] = {}
        self._files: dict[bool, list[str] | None] = {}
        self._num_val = 0  # validation images that the data set brings

    def prepare_data(self) -> None:
        if not self._arrays:  # the test split is the smaller one, and a download brings both
            self._read(train=False)

    def setup(self, stage: str | None = None) -> None:
        """Read the official splits that a stage needs, and choose the validation images.

        Args:
            stage: ``"test"`` needs the test images alone, ``"validate"`` the training images alone, of which validation
                images are chosen. All others need both.

        Raises:
            ValueError: If the data set is not as ``data.checks`` says, or its two splits do not fit each other; if
                ``batch_size`` is larger than the training split, unless the stage does not train; if ``val_size`` is
                not below the number of training images, or is given although the data set brings validation images.
            OSError: If the data are absent and cannot be downloaded.
        """
        if declared_options(self.dataset).get("memory") == Gigabytes and self.options.get("memory") == "auto":
            # Once: less is free as soon as the first images are read.
            self.options["memory"] = gigabytes("auto") / ranks.local_world_size()
        # The test images first, which are fewer: what is wrong with them is said soon.
        needed = {"test": (False,), "validate": (True,)}.get(stage or "", (False, True))
        for train in needed:
            if train not in self._arrays:
                self._read(train=train, pair=len(needed) == 2)
        self._check_pair()
        if True in needed and "train" not in self.index:
            self.index["train"], self.index["val"] = self._split()
        if False in needed and "test" not in self.index:
            self.index["test"] = torch.arange(len(self.arrays("test").targets))
        if stage not in ("test", "validate") and self.batch_size > (num := len(self.index["train"])):
            raise ValueError(f"batch_size must be at most the {num} training images, got {self.batch_size}")

    def _read(self, *, train: bool, pair: bool = False) -> None:
        for name in self._unused:
            log.info("unused    data.%s: the data set's class has no such option", name)
        self._unused = []
        both = {"pair": True} if pair and takes_pair(self.dataset) else {}
        dataset = fetch(self.dataset, root=self.root, train=train, **self.options, **both)
        self._arrays[train] = to_arrays(dataset)
        self._files[train] = files_of(dataset, len(self._arrays[train].targets))
        if train:
            self._num_val = checked_num_val(dataset, len(self._arrays[train].targets))

    def _check_pair(self) -> None:
        """Hold the training images and the test images against each other.

        Raises:
            ValueError: If their classes or the shapes of their images differ.
        """
        if len(self._arrays) < 2:
            return
        train, test = self._arrays[True], self._arrays[False]
        if train.classes != test.classes:
            raise ValueError(
                "dataset must have the same classes in training and test, in the same order, got "
                f"{listed(train.classes)} in training and {listed(test.classes)} in test"
            )
        if train.images.shape[1:] != test.images.shape[1:]:
            raise ValueError(
                "dataset must have images of one shape, got (C, H, W) = "
                f"{tuple(train.images.shape[1:])} in training and {tuple(test.images.shape[1:])} in test"
            )

    def _split(self) -> tuple[Tensor, Tensor]:
        targets = self._arrays[True].targets
        if not self._num_val:
            if self.val_size == "auto":
                return fifth_of_each_class(targets, seed=self.split_seed)
            return stratified_split(targets, val_size=self.val_size or 0, seed=self.split_seed)
        if self.val_size not in (None, "auto"):
            raise ValueError(
                f"val_size must be null or auto, as the data bring {self._num_val} validation images of their own, "
                f"got {self.val_size}"
            )
        train_index, val_index = torch.arange(len(targets)).tensor_split([len(targets) - self._num_val])
        return train_index, val_index

    def take_classes(self, classes: Sequence[str]) -> None:
        """Have the targets point into other classes by name, such as those of a checkpoint.

        Raises:
            ValueError: If a class of the data is not among them.
        """
        self._arrays = {train: arrays.with_classes(classes) for train, arrays in self._arrays.items()}
        self._placed.clear()

    def fingerprint(self) -> dict[str, str]:
        """Texts that tell these data from others: of the images and targets read, and of the choice for validation.

        Returns:
            By ``train`` (with the validation images), ``test`` and ``val`` (which of the former are for validation);
            of what has been read.
        """
        found = {"train" if train else "test": arrays.fingerprint() for train, arrays in self._arrays.items()}
        if "val" in self.index:
            found["val"] = hashlib.sha256(self.index["val"].numpy().data).hexdigest()[:32]
        return found

    def arrays(self, split: str) -> Arrays:
        """Images and targets that ``index[split]`` points into."""
        return self._arrays[split != "test"]

    def placed(self, split: str, device: torch.device | str) -> Arrays:
        """``arrays(split)`` on a device: copied once, then kept there."""
        key = split != "test", torch.device(device)
        if key not in self._placed:
            self._placed[key] = self.arrays(split).to(device)
        return self._placed[key]

    def targets(self, split: str) -> Int64[Tensor, " n"]:
        """Targets of a split's images, in the order of ``eval_batches(split)``."""
        return self.arrays(split).targets[self.index[split]]

    def files(self, split: str) -> list[str] | None:
        """Paths of a split's images, in the order of ``eval_batches(split)``; None for data that are no files."""
        files = self._files[split != "test"]
        return None if files is None else [files[index] for index in self.index[split].tolist()]

    @property
    def has_val(self) -> bool:
        """Whether there are validation images; known after ``setup``."""
        return len(self.index["val"]) > 0

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; known after ``setup``."""
        return self._any().classes

    @property
    def image_shape(self) -> torch.Size:
        """Shape (C, H, W) of an image before augmentation; known after ``setup``."""
        return self._any().images.shape[1:]

    def _any(self) -> Arrays:
        """The arrays of a split that has been read; in classes and shape they are alike."""
        return next(iter(self._arrays.values()))

    def eval_batches(self, split: str, device: torch.device | str = "cpu", *, make: type[Batches] = Batches) -> Batches:
        """A split's images without augmentation, in the data set's order."""
        return make(self.placed(split, device), self.index[split], batch_size=self.eval_batch_size)

    def train_batches(
        self,
        device: torch.device | str = "cpu",
        *,
        shuffle: bool = True,
        make: type[Batches] = Batches,
    ) -> Batches:
        """The training images, augmented; in a new order in each epoch, or in the data set's order."""
        return make(
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
        # With overfit_batches, Lightning trains on the same few batches in each epoch.
        shuffle, several = not self.trainer.overfit_batches, ranks.world_size() > 1  # type: ignore[attr-defined]
        return self.train_batches(self._device, shuffle=shuffle, make=TrainingShards if several else Batches)

    def val_dataloader(self) -> Batches | list[Batches]:
        return self._dealt_batches("val") if self.has_val else []

    def test_dataloader(self) -> Batches:
        return self._dealt_batches("test")

    def _dealt_batches(self, split: str) -> Batches:
        return self.eval_batches(split, self._device, make=DealtBatches if ranks.world_size() > 1 else Batches)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        # A batch is on the device already. Lightning's own method would look through it in each step.
        return batch


_ARGUMENTS = ImageDataModule.__init__.__annotations__.keys() - {"values", "return"}


def _own_options(dataset: Dataset, names: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of those options that the data set's class declares.

    Raises:
        TypeError: If the name of a value is not in ``names``.
        ValueError: If a value does not have the type that the class declares.
    """
    declared = declared_options(dataset)
    for name, value in values.items():
        if name not in names:
            raise TypeError(
                f"{name} is neither an argument of ImageDataModule nor one of the data set's options"
                f"{nearest(name, [*_ARGUMENTS, *names])}"
            )
        if name in declared and not fits(value, declared[name]):
            raise ValueError(f"{name} must be {words(declared[name])}, got {value!r}")
    return {name: value for name, value in values.items() if name in declared}
