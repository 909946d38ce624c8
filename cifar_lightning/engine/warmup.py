"""What is slow only the first time, done before the clock starts: the real loop over blank images, then all undone."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from jaxtyping import Int64, UInt8
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from cifar_lightning import ranks
from cifar_lightning.callbacks.freezing import Freezing
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.config.resolve import Section
from cifar_lightning.data import ImageDataModule
from cifar_lightning.data.shards import shard
from cifar_lightning.engine.trainer import build_trainer, refusals
from cifar_lightning.optim.freeze import ended
from cifar_lightning.patches import staying_on_device
from cifar_lightning.runs.signals import signals

_CALLS = 3
"""Steps of each kind: where torch records CUDA graphs, it does so at the second, and the third shows that it has."""

_ONE_EPOCH_PER_KIND = {
    "max_steps": -1,
    "min_steps": None,
    "min_epochs": None,
    "max_time": None,
    "fast_dev_run": False,
    "limit_train_batches": None,
    "limit_val_batches": None,
    "limit_test_batches": None,
    "overfit_batches": 0.0,
    "val_check_interval": None,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": 0,
    "accumulate_grad_batches": 1,
    "log_every_n_steps": 0,
    "enable_progress_bar": False,
    "detect_anomaly": False,
    "enable_model_summary": False,
    "profiler": None,
}
"""Arguments of the Trainer that would make the loop longer, shorter or louder than one epoch for each kind of epoch."""


@dataclass(frozen=True)
class Epoch:
    """A kind of training epoch.

    Attributes:
        number: Number of the run's first epoch of this kind, from 0; the augmentation may depend on it.
        progress: Share of all steps done at its start; it decides which parameters are frozen.
    """

    number: int
    progress: float


def warm_up(
    classifier: ImageClassifier,
    trainer: L.Trainer,
    data: ImageDataModule,
    section: Section,
    shapes: list[torch.Size],
    *,
    tta: int,
) -> None:
    """Train, validate and test over blank images of each kind that the run will see, and restore the classifier.

    That compiles what is to be compiled. And at the first call a GPU loads each kernel, and with ``trainer.benchmark``
    cuDNN tries its algorithms: 8 s of airbench94, which then takes 2.0 s.

    Args:
        classifier: On the device that trains, its network compiled in place or not.
        trainer: Which will train it.
        data: Which it will be trained on.
        section: The ``trainer`` section that ``trainer`` was built from.
        shapes: Of the training images (C, H, W), by epoch.
        tta: Level of test-time augmentation in the test.
    """
    device = trainer.strategy.root_device
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    epochs = _kinds(classifier, trainer, data, shapes)
    has_val = data.has_val and trainer.limit_val_batches != 0
    blank = BlankData(data, epochs, device, has_val=has_val)
    loop = build_trainer(
        {**section, **_ONE_EPOCH_PER_KIND, "max_epochs": len(epochs)},
        output_dir=trainer.default_root_dir,
        freezes=len(epochs) > 1,
        callbacks=[_TakesSignals(), _PlannedFreezing(epochs)],
        logger=False,
        enable_checkpointing=False,
    )
    if not has_val:
        loop.limit_val_batches = 0
    generators = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with generators, refusals(), staying_on_device(loop):
        next(iter(data.train_batches(device)))  # for the kernels that gather
        loop.fit(classifier, blank)
        if trainer.limit_test_batches != 0:
            classifier.tta = tta
            loop.test(classifier, blank, verbose=False)
            classifier.tta = 0
    classifier.train().float()
    classifier.load_state_dict(state)
    classifier.zero_grad()
    loop.strategy.optimizers = []  # whose buffers would stay until garbage is collected
    loop.strategy.model = None  # likewise what averages gradients
    classifier.train_metrics.take()
    classifier.evaluations.clear()
    classifier.augmented.clear()
    classifier.temperature = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # or the clock would wait for what is still to be done


class BlankData(L.LightningDataModule):
    """Black images of class 0, in batches of the sizes and shapes that a run's data come in.

    Args:
        data: The run's data.
        epochs: One for each kind of training epoch; each has ``_CALLS`` batches of each size.
        device: Where the batches are.
        has_val: Whether the run is validated.
    """

    def __init__(self, data: ImageDataModule, epochs: list[Epoch], device: torch.device, *, has_val: bool) -> None:
        super().__init__()
        self.data = data
        self.epochs = epochs
        self.device = device
        self.has_val = has_val

    def train_dataloader(self) -> "BlankBatches":
        return BlankBatches(self, self._sizes("train", self.data.batch_size), is_training=True)

    def val_dataloader(self) -> "BlankBatches | list[BlankBatches]":
        return BlankBatches(self, self._sizes("val", self.data.eval_batch_size)) if self.has_val else []

    def test_dataloader(self) -> "BlankBatches":
        return BlankBatches(self, self._sizes("test", self.data.eval_batch_size))

    def _sizes(self, split: str, batch_size: int) -> list[int]:
        """Of all batches but the last one, and of the last one."""
        num_images = len(self.data.index[split])
        return sorted({min(num_images, batch_size), num_images % batch_size} - {0}, reverse=True)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch


class BlankBatches:
    """Iterable over ``_CALLS`` blank batches of each size, augmented as the run's own where they are for training.

    In one of several ranks they are as the run's own there: shards of each, or whole ones and those of other ranks.
    """

    def __init__(self, blank: BlankData, sizes: list[int], *, is_training: bool = False) -> None:
        self.blank = blank
        self.sizes = sizes
        self.is_training = is_training

    def __len__(self) -> int:
        return len(self._in_order())

    def _in_order(self) -> list[int]:
        calls, rank, world_size = range(_CALLS), ranks.rank(), ranks.world_size()
        if self.is_training:
            return [size for size in self.sizes for _ in calls]
        return [size * (of == rank) for size in self.sizes for _ in calls for of in range(world_size)]

    def __iter__(self) -> Iterator[tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, " b"]] | ranks.Shard]:
        data, device = self.blank.data, self.blank.device
        shape = data.image_shape
        for size in self._in_order():
            images = torch.zeros(size, *shape, dtype=torch.uint8, device=device)
            if self.is_training and data.augment is not None:
                assert self.blank.trainer is not None
                epoch = self.blank.epochs[self.blank.trainer.current_epoch]
                images = data.augment(images, epoch.number, torch.Generator(device).manual_seed(0))
            targets = torch.zeros(size, dtype=torch.int64, device=device)
            yield shard(images, targets) if self.is_training and ranks.world_size() > 1 else (images, targets)


class _PlannedFreezing(Freezing):
    """Freezes in each epoch what the run will freeze in an epoch of that kind."""

    def __init__(self, epochs: list[Epoch]) -> None:
        super().__init__()
        self._epochs = epochs

    def progress(self, trainer: L.Trainer) -> float:
        return self._epochs[trainer.current_epoch].progress

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_end(trainer, pl_module)  # kinds need not come in the order of the run


class _TakesSignals(Callback):
    """Has signals stop the process as they do elsewhere: Lightning handles some of them by itself in each loop."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.install()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signals.install()


def _kinds(
    classifier: ImageClassifier, trainer: L.Trainer, data: ImageDataModule, shapes: list[torch.Size]
) -> list[Epoch]:
    """One epoch for each shape of the images together with each set of frozen parameters."""
    assert classifier.optimizer is not None
    groups = classifier.optimizer(classifier.net).param_groups
    kinds: dict[Any, Epoch] = {}
    planned = zip(shapes, _progress(trainer, data), strict=False)  # in this order: a run may have no planned end
    for number, (shape, progress) in enumerate(planned):
        frozen = frozenset(map(id, ended(groups, progress)))
        kinds.setdefault((shape, frozen), Epoch(number, progress))
    return list(kinds.values())


def _progress(trainer: L.Trainer, data: ImageDataModule) -> Iterator[float]:
    """Share of all steps done at the start of each epoch, as Lightning will count them."""
    num_batches, limit = len(data.train_batches()), trainer.limit_train_batches
    num_batches = min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)
    num_steps = -(-num_batches // trainer.accumulate_grad_batches)
    max_epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    all_steps = min(num_steps * max_epochs, math.inf if trainer.max_steps == -1 else trainer.max_steps)
    for epoch in itertools.count():
        if epoch * num_steps >= all_steps:
            return
        yield epoch * num_steps / all_steps
