from conftest import last, CLASSES, TinyCIFAR10
import pickle
from collections import Counter
from functools import partial

import hydra
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from cifar_lightning.config.build import build
from cifar_lightning.config.resolve import plain
from cifar_lightning.config.schema import CONF
from cifar_lightning.data import CIFAR10, Arrays, Batches, ImageDataModule, channel_statistics, spread
from cifar_lightning.data.arrays import fetch, to_arrays
from cifar_lightning.data.batches import stream_seed
from cifar_lightning.data.datamodule import stratified_split


@pytest.fixture
def arrays() -> Arrays:
    images = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1).expand(10, 3, 4, 4)
    return Arrays(images, torch.arange(10), tuple(CLASSES))


def make_data(root, **arguments) -> ImageDataModule:
    data = ImageDataModule(name="tiny", dataset=TinyCIFAR10, root=str(root), **arguments)
    data.prepare_data()
    data.setup()
    return data


def seen(batches: Batches) -> list[int]:
    return [int(target) for _, targets in batches for target in targets]


# Reading


def test_arrays_hold_the_files_bytes(tiny_root):
    data = make_data(tiny_root)
    raw = pickle.loads((tiny_root / "cifar-10-batches-py" / "data_batch_2").read_bytes())
    np.testing.assert_array_equal(data.arrays("train").images[30:].numpy(), raw["data"].reshape(30, 3, 32, 32))
    assert data.arrays("train").targets[30:].tolist() == raw["labels"]
    assert data.classes == tuple(CLASSES)


def test_reading_copies_no_pixels(tiny_root):
    dataset = TinyCIFAR10(str(tiny_root))
    assert to_arrays(dataset).images.data_ptr() == dataset.data.__array_interface__["data"][0]


def test_grey_images_get_a_channel():
    grey = type("Grey", (), {"data": np.zeros((5, 28, 28), np.uint8), "targets": [0] * 5, "classes": ["a"]})
    assert to_arrays(grey).images.shape == (5, 1, 28, 28)


def test_a_file_is_no_data_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="root must be a folder that holds the data, or will, got a file"):
        fetch(TinyCIFAR10, root=tmp_path / "file", train=True)


def test_data_that_cannot_be_had_name_the_folder_and_a_way_out(tmp_path, monkeypatch):
    def no_network(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    with pytest.raises(OSError, match=rf"(?s)not in {tmp_path}.*no route to host.*data=synthetic"):
        fetch(TinyCIFAR10, root=tmp_path, train=True)


def test_absent_data_are_downloaded_once(tmp_path, monkeypatch, tiny_root):
    calls = []

    def download(url: str, root: str, **kwargs: object) -> None:
        calls.append(url)
        (tmp_path / "cifar-10-batches-py").symlink_to(tiny_root / "cifar-10-batches-py")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", download)
    assert len(make_data(tmp_path).arrays("train").images) == 60
    assert calls == [TinyCIFAR10.url]


# Splits


@pytest.mark.parametrize("val_size", [0, 10, 17, 59])
def test_split_is_disjoint_complete_and_stratified(val_size):
    targets = torch.arange(60) % 10
    train, val = stratified_split(targets, val_size=val_size, seed=0)
    assert len(val) == val_size
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(60))
    counts = Counter(targets[val].tolist())
    assert all(val_size // 10 <= counts[k] <= -(-val_size // 10) for k in range(10))


def test_split_follows_unequal_classes():
    targets = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    _, val = stratified_split(targets, val_size=10, seed=3)
    assert Counter(targets[val].tolist()) == {0: 7, 1: 2, 2: 1}


def test_split_depends_on_its_own_seed_alone(tiny_root):
    chosen = [make_data(tiny_root, val_size=20, seed=seed).index["val"].tolist() for seed in (0, 1)]
    other = make_data(tiny_root, val_size=20, split_seed=1).index["val"].tolist()
    assert chosen[0] == chosen[1] != other


def test_test_split_is_all_official_test_images_once(tiny_root):
    data = make_data(tiny_root, val_size=20, eval_batch_size=7)
    batches = list(data.eval_batches("test"))
    assert [len(targets) for _, targets in batches] == [7, 7, 6]
    assert torch.equal(torch.cat([images for images, _ in batches]), data.arrays("test").images)
    assert torch.equal(torch.cat([targets for _, targets in batches]), data.targets("test"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 61}, "batch_size must be at most the 60 training images, got 61"),
        ({"eval_batch_size": -1}, "eval_batch_size must be at least 1, got -1"),
        ({"val_size": 60}, r"val_size must be in \[0, 60\), got 60"),
        ({"split_seed": -1}, "split_seed must be at least 0, got -1"),
    ],
)
def test_bad_sizes(arguments, message, tiny_root):
    with pytest.raises(ValueError, match=message):
        make_data(tiny_root, **arguments)


class WithVal(TinyCIFAR10):
    """Of the 60 training images the last 12 are for validation, as the data set itself says."""

    def __init__(self, root, train=True, download=False, *, image_size=32):
        super().__init__(root, train=train, download=download)
        self.num_val = 12 if train else 0
        self.image_size = image_size


def with_val(root, **arguments) -> ImageDataModule:
    data = ImageDataModule(name="tiny", dataset=WithVal, root=str(root), **arguments)
    data.setup()
    return data


def test_validation_images_that_the_data_set_brings(tiny_root):
    data = with_val(tiny_root, val_size=None)
    assert data.index["train"].tolist() == list(range(48))
    assert data.index["val"].tolist() == list(range(48, 60))
    assert data.has_val
    with pytest.raises(ValueError, match=r"val_size must be null where .* of their own, here 12, got 5"):
        with_val(tiny_root, val_size=5)


def test_no_validation_images_where_none_are_brought(tiny_root):
    data = make_data(tiny_root, val_size=None)
    assert (len(data.index["train"]), len(data.index["val"]), data.has_val) == (60, 0, False)


def test_options_go_to_the_classes_that_take_them(tiny_root):
    options = {"image_size": 24, "urls": ["https://example.org/x"]}
    assert with_val(tiny_root, val_size=None, **options).options == {"image_size": 24}
    assert make_data(tiny_root, **options).options == {}
    own = ImageDataModule(name="cifar10", dataset=partial(CIFAR10), root="nowhere", **options)
    assert own.options == {"urls": ["https://example.org/x"]}


def test_channel_statistics_are_those_of_the_pixels():
    images = torch.randint(256, (50, 3, 7, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=5e-7)
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=5e-7)
    assert channel_statistics(images.flip(0)) == (mean, std)


# Batches


def test_chosen_images_are_spread_over_all():
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
    assert spread(3, 8).tolist() == [0, 1, 2]


def test_an_epoch_shows_each_image_once_with_its_target(arrays):
    batches = Batches(arrays, torch.arange(10), batch_size=4, seed=0)
    parts = list(batches)
    assert [len(targets) for _, targets in parts] == [4, 4, 2]
    assert len(batches) == len(parts) == 3
    assert sorted(seen(batches)) == list(range(10))
    assert all(torch.equal(images[:, 0, 0, 0].long(), targets) for images, targets in parts)


@pytest.mark.parametrize("batch_size", [4, 100, 1024, 1500])
def test_a_batch_is_that_part_of_the_order_however_images_are_gathered(batch_size):
    num_images = 2_501  # more than two gathers, and a rest
    images = torch.randint(256, (num_images, 3, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    arrays = Arrays(images, torch.arange(num_images), tuple(CLASSES))
    batches = Batches(arrays, torch.arange(num_images), batch_size=batch_size, seed=0)
    order = batches.sampler.order().split(batch_size)
    parts = list(batches)
    assert len(parts) == len(batches) == len(order)
    for (images_, targets), chosen in zip(parts, order, strict=True):
        assert torch.equal(targets, chosen)
        assert torch.equal(images_, images[chosen])


@pytest.mark.parametrize("draws_ahead", [False, True])
def test_order_depends_on_seed_and_epoch_alone(arrays, draws_ahead):
    batches = Batches(arrays, torch.arange(10), batch_size=4, seed=5)
    batches.draws_ahead = draws_ahead  # as on a GPU
    first = seen(batches)
    assert (batches.sampler._ahead[0] == 1) == draws_ahead
    assert seen(batches) == first
    batches.sampler.set_epoch(1)
    second = seen(batches)
    assert second != first
    torch.manual_seed(123)  # the global generator has no say
    fresh = Batches(arrays, torch.arange(10), batch_size=3, seed=5)
    fresh.sampler.set_epoch(1)
    assert seen(fresh) == second
    assert seen(Batches(arrays, torch.arange(10), batch_size=4, seed=6)) != first


def test_unshuffled_batches_keep_the_index_order(arrays):
    assert seen(Batches(arrays, torch.tensor([7, 2, 9]), batch_size=2)) == [7, 2, 9]


def test_an_unused_iterator_changes_nothing(arrays):
    batches = Batches(arrays, torch.arange(10), batch_size=4, seed=0)
    expected = seen(batches)
    iter(batches)  # as Lightning does once at set-up
    assert seen(batches) == expected


def test_augmentation_draws_from_seed_epoch_and_batch(arrays):
    def noise(images, epoch, generator):
        drawn = torch.randint(256, images.shape, generator=generator, dtype=torch.uint8)
        return torch.where(drawn > 0, drawn, images)

    batches = Batches(arrays, torch.arange(10), batch_size=5, seed=0, augment=noise)
    first, second = (images for images, _ in batches)
    again = [images for images, _ in batches]
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, second)
    batches.sampler.set_epoch(1)
    assert not torch.equal(next(iter(batches))[0], first)


def test_augmentation_is_told_the_true_epoch(arrays):
    epochs = []

    def augment(images, epoch, generator):
        epochs.append(epoch)
        return images

    batches = Batches(arrays, torch.arange(10), batch_size=10, seed=0, augment=augment)
    for epoch in (0, 3):
        batches.sampler.set_epoch(epoch)
        list(batches)
    assert epochs == [0, 3]


def test_stream_seeds_differ():
    keys = [(seed, epoch, batch) for seed in range(10) for epoch in range(10) for batch in range(10)]
    assert len({stream_seed(*key) for key in keys}) == 1000
    assert stream_seed(0) != stream_seed(0, 0)


# The real thing


@pytest.mark.slow
def test_constants_of_cifar10_are_those_of_its_training_images(real_cifar10):
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", real_cifar10)
    data = build(plain(cfg.data), "data")
    data.setup()
    images = data.arrays("train").images
    assert images.shape == (50_000, 3, 32, 32)
    pixels = images.double().div(255)
    constants = OmegaConf.load(CONF / "normalize" / "cifar10.yaml")
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(list(constants.mean), abs=5e-5)
    assert pixels.std((0, 2, 3), correction=0).tolist() == pytest.approx(list(constants.std), abs=6e-5)


def test_dataset_may_be_a_partial(tiny_root):
    data = ImageDataModule(name="tiny", dataset=partial(TinyCIFAR10), root=str(tiny_root))
    data.setup()
    assert len(data.index["train"]) == 60
