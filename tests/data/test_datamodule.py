import logging
import pickle
from collections import Counter
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import CLASSES, TinyCIFAR10, WithVal
from hydra.utils import get_class
from omegaconf import OmegaConf

from cifar_lightning.config.build import build
from cifar_lightning.config.resolve import plain
from cifar_lightning.config.schema import CONF, compose
from cifar_lightning.data import Arrays, Batches, ImageDataModule, balanced_weights, channel_statistics, spread
from cifar_lightning.data.arrays import declared_options, fetch, to_arrays
from cifar_lightning.data.batches import stream_seed
from cifar_lightning.data.splits import fifth_of_each_class, stratified_split
from cifar_lightning.errors import UserError


@pytest.fixture
def arrays() -> Arrays:
    images = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1).expand(10, 3, 4, 4)
    return Arrays(images, torch.arange(10), tuple(CLASSES))


def make_data(root, **arguments) -> ImageDataModule:
    data = ImageDataModule(name="tiny", dataset=TinyCIFAR10, root=str(root), **arguments)
    data.prepare_data()
    data.setup()
    return data


def composed(*overrides: str) -> dict[str, Any]:
    """The config of train.py, plain."""
    return plain(compose(*overrides))


def seen(batches: Batches) -> list[int]:
    return [int(target) for _, targets in batches for target in targets]


# Reading


def test_arrays_hold_the_files_bytes(tiny_root):
    data = make_data(tiny_root)
    raw = pickle.loads((tiny_root / "cifar-10-batches-py" / "data_batch_2").read_bytes())
    np.testing.assert_array_equal(data.arrays("train").images[30:].numpy(), raw["data"].reshape(30, 3, 32, 32))
    assert data.arrays("train").targets[30:].tolist() == raw["labels"]
    assert data.classes == tuple(CLASSES)
    assert data.image_shape == (3, 32, 32)


def test_to_arrays_copies_no_pixels_of_cifar10(tiny_root):
    dataset = TinyCIFAR10(str(tiny_root))
    assert to_arrays(dataset).images.data_ptr() == dataset.data.__array_interface__["data"][0]


def test_grey_images_get_a_channel_dimension():
    grey = type("Grey", (), {"data": np.zeros((5, 28, 28), np.uint8), "targets": [0] * 5, "classes": ["a"]})
    assert to_arrays(grey).images.shape == (5, 1, 28, 28)


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="root must be a folder that holds the data or will hold them, got a file"):
        fetch(TinyCIFAR10, root=tmp_path / "file", train=True)


def test_a_failed_download_names_the_folder_and_what_to_do(tmp_path, monkeypatch):
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
def test_sizes_out_of_range_are_refused(arguments, message, tiny_root):
    with pytest.raises(ValueError, match=message):
        make_data(tiny_root, **arguments)


def with_val(root, **arguments) -> ImageDataModule:
    data = ImageDataModule(name="tiny", dataset=WithVal, root=str(root), **arguments)
    data.setup()
    return data


def test_the_data_set_may_bring_validation_images(tiny_root):
    data = with_val(tiny_root, val_size=None)
    assert data.index["train"].tolist() == list(range(48))
    assert data.index["val"].tolist() == list(range(48, 60))
    assert data.has_val
    with pytest.raises(ValueError, match=r"val_size must be null or auto, as the data bring 12 validation .*, got 5"):
        with_val(tiny_root, val_size=5)


def test_val_size_auto_takes_the_validation_images_that_the_data_set_brings(tiny_root):
    assert with_val(tiny_root, val_size="auto").index["val"].tolist() == list(range(48, 60))


def test_val_size_auto_is_a_fifth_of_each_class_where_the_data_set_brings_none(tiny_root):
    targets = torch.tensor([0] * 4 + [1] * 5 + [2] * 14 + [4] * 30)
    train, val = fifth_of_each_class(targets, seed=0)
    assert Counter(targets[val].tolist()) == {1: 1, 2: 2, 4: 6}
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(53))
    data = [make_data(tiny_root, val_size="auto", split_seed=seed) for seed in (0, 0, 1)]
    chosen = [one.index["val"].tolist() for one in data]
    assert chosen[0] == chosen[1] != chosen[2]
    assert Counter(data[0].targets("val").tolist()) == dict.fromkeys(range(10), 1)


def test_val_size_null_means_none_where_the_data_set_brings_none(tiny_root):
    data = make_data(tiny_root, val_size=None)
    assert (len(data.index["train"]), len(data.index["val"]), data.has_val) == (60, 0, False)


# Options of the data set


class Dimmed(TinyCIFAR10):
    """A data set with an option of its own."""

    options: ClassVar[dict[str, Any]] = {"divisor": int}

    def __init__(self, root, train=True, download=False, *, divisor=1):
        super().__init__(root, train=train, download=download)
        self.data = self.data // divisor


def dimmed(root, dataset, **arguments) -> ImageDataModule:
    return ImageDataModule(name="dimmed", dataset=dataset, root=str(root), options=["divisor"], **arguments)


@pytest.mark.parametrize("dataset", [Dimmed, partial(Dimmed)], ids=["class", "partial"])
def test_a_data_set_gets_the_options_that_it_declares(dataset, tiny_root):
    data = dimmed(tiny_root, dataset, divisor=4)
    data.setup()
    full = make_data(tiny_root)
    for split in ("train", "test"):
        assert torch.equal(data.arrays(split).images, full.arrays(split).images // 4)


def test_a_data_set_without_declared_options_gets_none_and_the_log_says_so(tiny_root, caplog):
    data = dimmed(tiny_root, partial(TinyCIFAR10), divisor=4)
    with caplog.at_level(logging.INFO):
        data.setup()
    assert len(data.index["train"]) == 60
    assert caplog.messages == ["unused    data.divisor: the data set's class has no such option"]


def test_an_option_without_a_value_keeps_the_default_of_the_class(tiny_root):
    data = dimmed(tiny_root, Dimmed)
    data.setup()
    assert torch.equal(data.arrays("train").images, make_data(tiny_root).arrays("train").images)


class Paired(TinyCIFAR10):
    """A data set that notes whether it is told that both of its splits are read."""

    takes_pair: ClassVar[bool] = True
    calls: ClassVar[list[tuple[bool, bool]]] = []

    def __init__(self, root, train=True, download=False, *, pair=False):
        super().__init__(root, train=train, download=download)
        self.calls.append((train, pair))


@pytest.mark.parametrize("dataset", [Paired, partial(Paired)], ids=["class", "partial"])
@pytest.mark.parametrize(
    ("stage", "calls"),
    [
        ("test", [(False, False)]),
        ("validate", [(True, False)]),
        ("fit", [(False, True), (True, True)]),
        (None, [(False, True), (True, True)]),
    ],
)
def test_a_data_set_that_asks_for_it_is_told_whether_both_splits_are_read(stage, calls, dataset, tiny_root):
    Paired.calls.clear()
    ImageDataModule(name="tiny", dataset=dataset, root=str(tiny_root)).setup(stage)
    assert Paired.calls == calls


@pytest.mark.parametrize("dataset", [Dimmed, TinyCIFAR10])
@pytest.mark.parametrize(("misspelt", "meant"), [("divisr", "divisor"), ("btach_size", "batch_size")])
def test_a_misspelt_key_is_refused_whatever_the_data_set(misspelt, meant, dataset, tiny_root):
    with pytest.raises(TypeError, match=f"^{misspelt} is neither an argument of .*: did you mean {meant}\\?$"):
        dimmed(tiny_root, dataset, **{misspelt: 4})


def test_an_option_of_the_wrong_type_is_refused(tiny_root):
    with pytest.raises(ValueError, match=r"^divisor must be a whole number, got '4'$"):
        dimmed(tiny_root, Dimmed, divisor="4")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.urls=abc"], "^data.urls must be a list, each item text or null, got 'abc'$"),
        (["data=folder", "data.root=x", "data.image_size=abc"], "^data.image_size must be a whole number, got 'abc'$"),
    ],
)
def test_a_wrong_option_on_the_command_line_is_named_by_its_key(overrides, message):
    with pytest.raises(UserError, match=message):
        build(composed(*overrides)["data"], "data")


def test_a_misspelt_key_in_a_file_of_conf_is_named():
    with pytest.raises(UserError, match=r"^data.image_siz is neither .*: did you mean image_size\?$"):
        build({**composed("data=folder", "data.root=x")["data"], "image_siz": 32}, "data")


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
def test_files_of_conf_list_the_options_that_their_class_declares(name):
    node = composed(f"data={name}", "data.root=x")["data"]
    declared = declared_options(get_class(node["dataset"]["_target_"]))
    assert set(node.get("options", [])) == set(declared)
    assert set(declared) <= set(node)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cifar10", {"urls": ["https://x"]}),
        ("cifar100", {"urls": ["https://x"]}),
        ("folder", {"image_size": 24, "background": "white", "memory": 2.5}),
    ],
)
def test_options_typed_on_the_command_line_reach_the_data_set(name, options):
    overrides = [f"data.{key}={value}" for key, value in options.items()]
    data = build(composed(f"data={name}", "data.root=x", *overrides)["data"], "data")
    assert data.options == options


# Statistics


def test_channel_statistics_are_mean_and_std_of_the_pixels():
    images = torch.randint(256, (50, 3, 7, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = channel_statistics([images])
    pixels = images.double() / 255
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=5e-7)
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=5e-7)
    assert channel_statistics(images.flip(0).split(7)) == (mean, std)


def test_chosen_images_are_spread_evenly():
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
    assert spread(3, 8).tolist() == [0, 1, 2]


# Batches


def test_an_epoch_shows_each_image_once_with_its_target(arrays):
    batches = Batches(arrays, torch.arange(10), batch_size=4, seed=0)
    parts = list(batches)
    assert [len(targets) for _, targets in parts] == [4, 4, 2]
    assert len(batches) == len(parts) == 3
    assert sorted(seen(batches)) == list(range(10))
    assert all(torch.equal(images[:, 0, 0, 0].long(), targets) for images, targets in parts)


@pytest.mark.parametrize("batch_size", [4, 100, 1024, 1500])
def test_batches_follow_the_order_whatever_their_size(batch_size):
    num_images = 2_501  # two gathers of 1,024 images and a rest
    images = torch.randint(256, (num_images, 3, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    arrays = Arrays(images, torch.arange(num_images), tuple(CLASSES))
    batches = Batches(arrays, torch.arange(num_images), batch_size=batch_size, seed=0)
    order = batches.sampler.order().split(batch_size)
    parts = list(batches)
    assert len(parts) == len(batches) == len(order)
    for (images_, targets), chosen in zip(parts, order, strict=True):
        assert torch.equal(targets, chosen)
        assert torch.equal(images_, images[chosen])


@pytest.mark.parametrize("draws_ahead", [False, True], ids=["cpu", "gpu"])
def test_order_depends_on_seed_and_epoch_alone(arrays, draws_ahead):
    batches = Batches(arrays, torch.arange(10), batch_size=4, seed=5)
    batches.draws_ahead = draws_ahead
    first = seen(batches)
    assert seen(batches) == first
    batches.sampler.set_epoch(1)
    second = seen(batches)
    assert second != first
    torch.manual_seed(123)  # the order must not depend on the global generator
    fresh = Batches(arrays, torch.arange(10), batch_size=3, seed=5)
    fresh.sampler.set_epoch(1)
    assert seen(fresh) == second
    assert seen(Batches(arrays, torch.arange(10), batch_size=4, seed=6)) != first


@pytest.mark.parametrize("draws_ahead", [False, True], ids=["cpu", "gpu"])
def test_a_gpu_does_not_wait_for_the_next_order(arrays, draws_ahead, monkeypatch):
    batches = Batches(arrays, torch.arange(10), batch_size=4, seed=5)
    batches.draws_ahead = draws_ahead
    seen(batches)
    batches.sampler.set_epoch(1)
    drawn = []
    original = torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *args, **kwargs: drawn.append(1) or original(*args, **kwargs))
    next(iter(batches))
    assert len(drawn) == (not draws_ahead)


def test_a_resumed_epoch_continues_with_the_next_batch(arrays):
    batches = Batches(arrays, torch.arange(10), batch_size=4, seed=5)
    _, given = next(iter(batches))
    resumed = Batches(arrays, torch.arange(10), batch_size=4, seed=5)
    resumed.load_state_dict(batches.state_dict())
    assert [*given.tolist(), *seen(resumed)] == seen(batches)
    assert seen(resumed) == seen(batches), "the epoch after a resumed one is not whole"


def test_unshuffled_batches_keep_the_index_order(arrays):
    assert seen(Batches(arrays, torch.tensor([7, 2, 9]), batch_size=2)) == [7, 2, 9]


def test_an_unused_iterator_changes_nothing(arrays):
    batches = Batches(arrays, torch.arange(10), batch_size=4, seed=0)
    expected = seen(batches)
    iter(batches)  # Lightning does so before training
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


def test_augment_may_be_set_after_reading(tiny_root):
    data = make_data(tiny_root, batch_size=60)
    plain_images, _ = next(iter(data.train_batches()))
    data.augment = lambda images, epoch, generator: 255 - images
    images, _ = next(iter(data.train_batches()))
    assert torch.equal(images, 255 - plain_images)
    assert torch.equal(torch.cat([images for images, _ in data.eval_batches("test")]), data.arrays("test").images)


def test_augmentation_gets_the_number_of_the_epoch(arrays):
    epochs = []

    def augment(images, epoch, generator):
        epochs.append(epoch)
        return images

    batches = Batches(arrays, torch.arange(10), batch_size=10, seed=0, augment=augment)
    for epoch in (0, 3):
        batches.sampler.set_epoch(epoch)
        list(batches)
    assert epochs == [0, 3]


def test_different_keys_give_different_stream_seeds():
    keys = [(seed, epoch, batch) for seed in range(10) for epoch in range(10) for batch in range(10)]
    assert len({stream_seed(*key) for key in keys}) == 1000
    assert stream_seed(0) != stream_seed(0, 0)


# CIFAR-10 itself


@pytest.mark.slow
def test_the_constants_in_conf_are_mean_and_std_of_the_training_images(real_cifar10):
    data = build(composed(*real_cifar10)["data"], "data")
    data.setup()
    images = data.arrays("train").images
    assert images.shape == (50_000, 3, 32, 32)
    pixels = images.double().div(255)
    constants = OmegaConf.load(CONF / "normalize" / "cifar10.yaml")
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx(list(constants.mean), abs=5e-5)
    assert pixels.std((0, 2, 3), correction=0).tolist() == pytest.approx(list(constants.std), abs=6e-5)


def test_preparing_data_opens_the_smaller_split_so_that_a_download_comes_first(tiny_root):
    opened = []

    class Recorded(TinyCIFAR10):
        def __init__(self, root, train=True, download=False):
            opened.append(train)
            super().__init__(root, train=train, download=download)

    data = ImageDataModule(name="tiny", dataset=Recorded, root=str(tiny_root))
    data.prepare_data()
    assert opened == [False]
    data.setup()
    assert opened == [False, True]  # nothing is read twice


def test_balanced_weights_make_classes_count_alike():
    targets = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = balanced_weights(targets, 4)
    assert weights == pytest.approx([10 / 24, 10 / 12, 0, 10 / 4])
    assert torch.tensor(weights)[targets].sum() == pytest.approx(10 * 3 / 4)  # a class without images has no share
