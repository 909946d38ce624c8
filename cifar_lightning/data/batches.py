"""Batches from arrays: an epoch is a permutation of the images and a batch a gather, on the training device."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from cifar_lightning.data.arrays import BYTES_PER_PART, Arrays, images_in

Augment = Callable[[UInt8[Tensor, "n c h w"], int, torch.Generator], UInt8[Tensor, "n c h2 w2"]]
"""``(images, epoch, generator) -> images``: same N, C, dtype and device; H and W may shrink."""


def stream_seed(*key: int) -> int:
    """Seed, in [0, 2**63), of the random stream of a key such as (seed, epoch). Other keys give unrelated streams."""
    # The length is part of the key because SeedSequence pads with zeros: (0,) and (0, 0) would be the same.
    return int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class EpochSampler:
    """Order of an epoch's images. It depends on the seed and the epoch's number alone, so a resumed run repeats it.

    Lightning calls ``set_epoch`` on a loader's ``sampler`` before each epoch.

    Args:
        index: Indices of the images of an epoch.
        seed: Seed of the shuffles. None keeps the order of ``index``.
    """

    def __init__(self, index: Int64[Tensor, " n"], *, seed: int | None) -> None:
        self.index = index
        self.seed = seed
        self.epoch = 0
        self._drawn_ahead = (-1, index)  # an epoch and its order

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.index)

    def order(self) -> Int64[Tensor, " n"]:
        """Indices of the epoch's images, in their order."""
        epoch, order = self._drawn_ahead
        return order if epoch == self.epoch else self._draw(self.epoch)

    def draw_ahead(self) -> None:
        """Draw the next epoch's order now, while a GPU computes, so that it does not wait for it later."""
        self._drawn_ahead = (self.epoch + 1, self._draw(self.epoch + 1))

    def _draw(self, epoch: int) -> Int64[Tensor, " n"]:
        if self.seed is None:
            return self.index
        # A generator on the CPU, as each kind of device draws other numbers.
        generator = torch.Generator().manual_seed(stream_seed(self.seed, epoch))
        return self.index[torch.randperm(len(self.index), generator=generator)]


IMAGES_PER_GATHER = 1024
"""Small batches are views into a gather of so many images, or of ``BYTES_PER_PART``."""


class Batches:
    """Iterable over an epoch's ``(images, targets)``, augmented and on the device.

    It replaces DataLoader, its workers and per-image transforms. 60,000 images are 184 MB, so they stay on the device,
    and a gather takes microseconds. Small batches are views into one larger gather, which saves 4 % of a step as small
    as the tutorial's. The last batch may be smaller. Images in a mapped file come from there, read ahead by a thread.

    Lightning stores ``state_dict`` in a checkpoint. It holds the number of batches that the epoch has yielded. Their
    content follows from seed and epoch, so a resumed run continues with the next batch.

    Args:
        arrays: Images and targets, on the device of the batches; or images in a mapped file, and targets on the device.
        index: Indices of the images of an epoch.
        batch_size: Images per batch.
        seed: Seed of the order and of the augmentation. None keeps the order of ``index``.
        augment: Changes each batch of images. Its random numbers depend on (seed, epoch, batch) alone.

    Attributes:
        draws_ahead: Whether the last batch of an epoch draws the order of the next epoch; true on a GPU.
    """

    batch_sampler = None  # Lightning asks for it where a loader has a sampler

    def __init__(
        self,
        arrays: Arrays,
        index: Int64[Tensor, " n"],
        *,
        batch_size: int,
        seed: int | None = None,
        augment: Augment | None = None,
    ) -> None:
        self.arrays = arrays
        self.sampler = EpochSampler(index, seed=seed)
        self.batch_size = batch_size
        self.augment = augment
        self.draws_ahead = arrays.device.type != "cpu"
        self._num_yielded = 0
        self._start = 0

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def state_dict(self) -> dict[str, int]:
        """Number of batches that the epoch has yielded."""
        return {"given": self._num_yielded}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Start the next iteration after that number of batches."""
        self._start = state_dict["given"] % len(self)  # after the last batch, the next epoch starts at its first

    def __iter__(self) -> Iterator[tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, " b"]]]:
        # A generator function runs nothing before the first next(), so an iter() that Lightning does not use is free.
        epoch = self.sampler.epoch
        generator = torch.Generator(self.arrays.device)
        start, self._start = self._start, 0
        order = self.sampler.order()[start * self.batch_size :]
        for batch, (images, targets) in enumerate(self._gathered(order), start):
            self._num_yielded = batch + 1
            if self.augment is not None:
                generator.manual_seed(stream_seed(self.sampler.seed or 0, epoch, batch))
                images = self.augment(images, epoch, generator)
            if self.draws_ahead and batch + 1 == len(self):
                self.sampler.draw_ahead()
            yield images, targets

    def _gathered(self, order: Int64[Tensor, " m"]) -> Iterator[tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, " b"]]]:
        """Batches of the images in an order."""
        images_per_gather = min(IMAGES_PER_GATHER, images_in(BYTES_PER_PART, self.arrays.images.shape))
        batches_per_gather = max(1, images_per_gather // self.batch_size)
        for images, targets in self.arrays.gather_parts(order, batches_per_gather * self.batch_size):
            yield from zip(images.split(self.batch_size), targets.split(self.batch_size), strict=True)
