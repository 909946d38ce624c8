"""What one rank of several gets of an epoch's batches: a shard of each batch to train on, whole batches to evaluate."""

from collections.abc import Iterator

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from cifar_lightning import ranks
from cifar_lightning.data.batches import Batches
from cifar_lightning.ranks import Shard


def bounds(num_images: int, rank: int, world_size: int) -> tuple[int, int]:
    """Where the shard of a rank begins and ends in a batch.

    Shards are contiguous. Their sizes differ by one at most, and lower ranks have the larger ones.
    """
    size, num_larger = divmod(num_images, world_size)
    first, last = (number * size + min(number, num_larger) for number in (rank, rank + 1))
    return first, last


def shard(images: UInt8[Tensor, "b c h w"], targets: Int64[Tensor, " b"]) -> Shard:
    """What this rank trains on of a batch.

    A rank whose shard is empty, in a batch of fewer images than ranks, gets an image that does not count: all ranks
    must take part in each step.
    """
    first, last = bounds(len(targets), ranks.rank(), ranks.world_size())
    own = slice(first, last) if first < last else slice(-1, None)
    return images[own], targets[own], targets, last - first


class TrainingShards(Batches):
    """Iterable over this rank's shards of an epoch's training batches, for the mean gradient of the whole batch.

    The batches are those of a single device, augmented whole on each rank, as their random numbers belong to the whole.
    """

    def __iter__(self) -> Iterator[Shard]:  # type: ignore[override]
        return (shard(images, targets) for images, targets in super().__iter__())


class DealtBatches(Batches):
    """Iterable over all batches of an evaluation, those of other ranks empty.

    Whole batches are dealt out in turn, so that each image is counted once, and its logits are bit for bit those of a
    single device. All ranks count the same batches.
    """

    def __iter__(self) -> Iterator[tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, " b"]]]:
        rank, world_size = ranks.rank(), ranks.world_size()
        start, self._start = self._start, 0
        chunks = self.sampler.order().split(self.batch_size)
        own = [number % world_size == rank for number in range(len(chunks))]
        mine = [chunk for number, chunk in enumerate(chunks) if own[number] and number >= start]
        gathered = self._gathered(torch.cat(mine)) if mine else iter(())
        arrays = self.arrays
        nothing = torch.empty(0, *arrays.images.shape[1:], dtype=torch.uint8, device=arrays.device), arrays.targets[:0]
        for number in range(start, len(chunks)):
            self._num_yielded = number + 1
            yield next(gathered) if own[number] else nothing
