"""What the ranks of a run get of its batches: each image once, whatever the sizes."""

import pytest
import torch

from cifar_lightning import ranks
from cifar_lightning.augment import FlipTranslateCutout
from cifar_lightning.data import Arrays
from cifar_lightning.data.batches import Batches
from cifar_lightning.data.shards import DealtBatches, TrainingShards, bounds


@pytest.fixture
def as_rank(monkeypatch):
    """Be a rank of several, as far as the data ask for it."""

    def be(rank, world_size):
        monkeypatch.setattr(ranks, "rank", lambda: rank)
        monkeypatch.setattr(ranks, "world_size", lambda: world_size)

    return be


def batches(make, *, batch_size, num_images=23, **arguments):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num_images, 3, 8, 8), dtype=torch.uint8, generator=generator)
    arrays = Arrays(images, torch.arange(num_images) % 5, tuple("abcde"))
    return make(arrays, torch.arange(num_images).flip(0), batch_size=batch_size, **arguments)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_images", [1, 2, 7, 8, 9, 64])
def test_shards_are_contiguous_and_almost_equal(num_images, world_size):
    parts = [bounds(num_images, rank, world_size) for rank in range(world_size)]
    assert [index for first, last in parts for index in range(first, last)] == list(range(num_images))
    sizes = [last - first for first, last in parts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True), "the first rank, whose statistics count, has images"


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 11, 22])
def test_shards_of_a_batch_are_that_batch_augmented_as_a_whole(batch_size, world_size, as_rank):
    arguments = {"batch_size": batch_size, "seed": 7, "augment": FlipTranslateCutout(flip="random", padding=2)}
    whole = list(batches(Batches, **arguments))
    own = []
    for rank in range(world_size):
        as_rank(rank, world_size)
        shards = batches(TrainingShards, **arguments)
        assert len(shards) == len(whole)
        own.append(list(shards))
    for (images, targets), *parts in zip(whole, *own, strict=True):
        counted = [(part[0][: part[3]], part[1][: part[3]]) for part in parts]
        assert torch.equal(torch.cat([part[0] for part in counted]), images)
        assert torch.equal(torch.cat([part[1] for part in counted]), targets)
        assert all(len(part[0]) == len(part[1]) == max(1, part[3]) for part in parts), "none is empty"
        assert all(torch.equal(part[2], targets) for part in parts)


@pytest.mark.parametrize("batch_size", [1, 4, 23])
@pytest.mark.parametrize("start", [0, 1])
def test_whole_batches_are_dealt_in_turn(batch_size, start, as_rank):
    whole = list(batches(Batches, batch_size=batch_size))
    own = []
    for rank in range(3):
        as_rank(rank, 3)
        dealt = batches(DealtBatches, batch_size=batch_size)
        assert len(dealt) == len(whole)
        dealt.load_state_dict({"given": start})
        own.append(list(dealt))
    begin = start % len(whole)
    assert all(len(one) == len(whole) - begin for one in own)
    for number, (images, targets) in enumerate(whole[begin:], begin):
        for rank in range(3):
            mine, labels = own[rank][number - begin]
            assert mine.shape[1:] == images.shape[1:]
            assert torch.equal(mine, images if number % 3 == rank else images[:0])
            assert torch.equal(labels, targets if number % 3 == rank else targets[:0])
