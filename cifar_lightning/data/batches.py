"""In-memory batches: an epoch is one permutation, a batch one gather, on the device that trains."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from cifar_lightning.data.arrays import Arrays

Augment = Callable[[UInt8[Tensor, "n c h w"], int, torch.Generator], UInt8[Tensor, "n c h2 w2"]]
"""``(images, epoch, generator) -> images``."""


def stream_seed(*key: int) -> int:
    """Seed of the random stream that belongs to a key such as (seed, epoch); well mixed, in [0, 2**63)."""
    # With its length, since SeedSequence pads with zeros: (0,) would be (0, 0).
    return int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class EpochSampler:
    """Order of an epoch's images, from the seed and the epoch's number alone.

    Whatever was drawn before, and from whatever epoch a run resumes, an epoch's order is the same. Lightning calls
    ``set_epoch`` on a loader's ``sampler`` before each epoch.

    Args:
        index: Indices of the images that take part.
        seed: Seed of the shuffles; None keeps the order of ``index``.
    """

    def __init__(self, index: Int64[Tensor, " n"], *, seed: int | None) -> None:
        self.index = index
        self.seed = seed
        self.epoch = 0
        self._ahead = (-1, index)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.index)

    def order(self) -> Int64[Tensor, " n"]:
        """Indices of this epoch's images, in their order."""
        epoch, order = self._ahead
        return order if epoch == self.epoch else self._draw(self.epoch)

    def draw_ahead(self) -> None:
        """Draw the next epoch's order now, so that a GPU need not wait for it then."""
        self._ahead = (self.epoch + 1, self._draw(self.epoch + 1))

    def _draw(self, epoch: int) -> Int64[Tensor, " n"]:
        if self.seed is None:
            return self.index
        # On the CPU, so that the order does not depend on the device.
        generator = torch.Generator().manual_seed(stream_seed(self.seed, epoch))
        return self.index[torch.randperm(len(self.index), generator=generator)]


_IMAGES_PER_GATHER = 1024


class Batches:
    """Iterable over an epoch's ``(images, targets)``, already on the device and augmented.

    Takes the place of DataLoader, workers and per-image transforms: 60,000 images are 184 MB, so they stay on the
    device, and gathering costs microseconds. Small batches are views into a common gather, which spares a step as small
    as the tutorial's 4 %. The last batch holds what is left over.

    Lightning keeps ``state_dict`` in a checkpoint: how many batches of the epoch have been given out. What they held
    follows from seed and epoch, so a resumed run goes on with the very batch that comes next.

    Args:
        arrays: Images and targets, on the device where batches are wanted.
        index: Indices of the images that take part.
        batch_size: Images per batch.
        seed: Seed of order and augmentation; None for the order of ``index``.
        augment: Changes each batch of images; its random numbers come from (seed, epoch, batch) alone.
    """

    batch_sampler = None  # Lightning asks for it where it finds a sampler

    def __init__(
        self,
        arrays: Arrays,
        index: Int64[Tensor, " n"],
        *,
        batch_size: int,
        seed: int | None = None,
        augment: Augment | None = None,
    ) -> None:
        self.images, self.targets = arrays.images, arrays.targets
        self.sampler = EpochSampler(index, seed=seed)
        self.batch_size = batch_size
        self.augment = augment
        self.draws_ahead = arrays.images.device.type != "cpu"
        self._given = 0
        self._start = 0

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def state_dict(self) -> dict[str, int]:
        """Batches of the epoch that have been given out."""
        return {"given": self._given}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next iteration begin after as many batches."""
        self._start = state_dict["given"] % len(self)  # a whole epoch's end is the start of the next

    def __iter__(self) -> Iterator[tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, " b"]]]:
        # A generator: nothing runs before the first batch is asked for, so Lightning's extra iter() costs nothing.
        epoch = self.sampler.epoch
        device = self.images.device
        generator = torch.Generator(device)
        start, self._start = self._start, 0
        for batch, (images, targets) in enumerate(self._gathered(device, start), start):
            self._given = batch + 1
            if self.augment is not None:
                generator.manual_seed(stream_seed(self.sampler.seed or 0, epoch, batch))
                images = self.augment(images, epoch, generator)
            if self.draws_ahead and batch + 1 == len(self):
                self.sampler.draw_ahead()
            yield images, targets

    def _gathered(
        self, device: torch.device, start: int
    ) -> Iterator[tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, " b"]]]:
        batches_per_gather = max(1, _IMAGES_PER_GATHER // self.batch_size)
        order = self.sampler.order()[start * self.batch_size :].to(device)
        for chosen in order.split(batches_per_gather * self.batch_size):
            images, targets = self.images[chosen], self.targets[chosen]
            yield from zip(images.split(self.batch_size), targets.split(self.batch_size), strict=True)
