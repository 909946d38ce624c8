"""Images that do not fit into memory: mapped from the cache's file, they are the same to the bit."""

import itertools
import logging
import os
import shutil
import signal
import threading
from collections import namedtuple
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BARE, after_each_save, differences, last, of_checkpoint
from file_sizes import no_file_above
from pictures import cache_files, noise, write, write_for_workers, write_pets

from cifar_lightning.augment import CropFlip
from cifar_lightning.commands.evaluate import evaluate
from cifar_lightning.commands.train import train
from cifar_lightning.config import schema
from cifar_lightning.data import ImageDataModule, ImageFolder, batches, channel_statistics, mapped
from cifar_lightning.data.arrays import Arrays, to_arrays
from cifar_lightning.data.mapped import read_ahead
from cifar_lightning.runs.evaluations import changed

NOTHING, PLENTY = 0, 1
"""GB, for ``data.memory``."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images of two classes: 24 to train on, 6 to validate on, 8 to test on. Nothing but a cache is written there."""
    root = tmp_path_factory.mktemp("pets")
    for split, num_images in (("train", 12), ("val", 3), ("test", 4)):
        for name, number in itertools.product(("cat", "dog"), range(num_images)):
            write(root / split / name / f"{number:02}.png", noise(16, 16))
    return root


def make_data(root: Path, gigabytes: float | str, **arguments) -> ImageDataModule:
    values = {"image_size": 16, "memory": gigabytes}
    arguments = {"batch_size": 5, "eval_batch_size": 3, "val_size": None, "seed": 3} | arguments
    data = ImageDataModule(
        name="pets", dataset=ImageFolder, root=str(root), options=list(values), **values, **arguments
    )
    data.setup()
    return data


def both(root: Path, **arguments) -> tuple[ImageDataModule, ImageDataModule]:
    """The data mapped, and in memory."""
    data = make_data(root, NOTHING, **arguments), make_data(root, PLENTY, **arguments)
    for split in ("train", "test"):
        assert [one.arrays(split).mapped is None for one in data] == [False, True]
    return data


def assert_no_thread_reads() -> None:
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]


# Pixels and their order


@pytest.mark.parametrize("images_per_gather", [1, 7, 1024])
def test_batches_are_those_of_memory(images_per_gather, folder, monkeypatch):
    monkeypatch.setattr(batches, "IMAGES_PER_GATHER", images_per_gather)
    monkeypatch.setattr(mapped, "_BYTES_PER_COPY", 2 * 16 * 16 * 3)
    data = both(folder, augment=CropFlip())
    loaders = [(one.train_batches(), one.eval_batches("val"), one.eval_batches("test")) for one in data]
    for epoch in range(2):
        for one, other in zip(*loaders, strict=True):
            one.sampler.set_epoch(epoch)
            other.sampler.set_epoch(epoch)
            pairs = list(zip(one, other, strict=True))
            assert len(pairs) == len(one)
            for (images, targets), (images_in_memory, targets_in_memory) in pairs:
                assert images.is_contiguous()
                assert torch.equal(images, images_in_memory)
                assert torch.equal(targets, targets_in_memory)
    assert_no_thread_reads()


def test_a_resumed_epoch_continues_with_the_next_batch(folder):
    one, other = (data.train_batches() for data in both(folder))
    next(iter(one))
    other.load_state_dict(one.state_dict())
    one.load_state_dict(one.state_dict())
    for (images, _), (images_in_memory, _) in zip(one, other, strict=True):
        assert torch.equal(images, images_in_memory)


def test_what_walks_over_all_images_finds_the_same(folder, monkeypatch):
    monkeypatch.setattr("cifar_lightning.data.arrays.BYTES_PER_PART", 5 * 16 * 16 * 3)
    one, other = both(folder)
    assert one.fingerprint() == other.fingerprint()
    statistics = [channel_statistics(images for images, _ in data.eval_batches("train")) for data in (one, other)]
    assert statistics[0] == statistics[1]
    assert torch.equal(one.arrays("train").images, other.arrays("train").images)  # a view, for looking at it


@pytest.mark.parametrize("index", [[4], [3, 0, 3], []])
def test_chosen_images_are_copies_without_gaps(index, folder):
    one, other = both(folder)
    images = one.placed("train", "cpu").gather(torch.tensor(index, dtype=torch.int64))
    assert images.is_contiguous()
    assert torch.equal(images, other.arrays("train").images[index])
    images.fill_(0)
    assert one.fingerprint() == other.fingerprint()


def test_arrays_on_a_device_keep_the_images_in_the_file(folder):
    arrays = make_data(folder, NOTHING).arrays("train")
    placed = arrays.to("meta")
    assert (placed.images.data_ptr(), placed.images.device.type) == (arrays.images.data_ptr(), "cpu")
    assert placed.device.type == "meta"
    assert placed.mapped is arrays.with_classes(("dog", "cat")).mapped is not None


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (6, 5, 4)])
def test_a_users_own_mapped_array_stays_in_its_file(shape, tmp_path):
    pixels = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=shape)
    pixels[:] = np.random.default_rng(0).integers(0, 256, shape)
    arrays, view, copy = map(arrays_of, (pixels, pixels.reshape(-1).reshape(shape)[::-1][::-1][1:4], np.array(pixels)))
    assert [one.mapped is None for one in (arrays, view, copy)] == [False, False, True]
    assert torch.equal(arrays.gather(torch.arange(1, 4)), view.gather(torch.arange(3)))
    assert arrays.fingerprint() == copy.fingerprint()


def test_changes_that_are_in_memory_alone_are_kept(tmp_path):
    np.zeros((6, 5, 4, 3), np.uint8).tofile(tmp_path / "pixels")
    pixels = np.memmap(tmp_path / "pixels", np.uint8, "c", shape=(6, 5, 4, 3))
    pixels[2] = 7
    arrays = arrays_of(pixels)
    assert arrays.mapped is None
    assert arrays.gather(torch.arange(3)).amax((1, 2, 3)).tolist() == [0, 0, 7]
    assert arrays_of(pixels.copy()).mapped is None


def arrays_of(pixels: np.ndarray) -> Arrays:
    return to_arrays(namedtuple("Dataset", "data targets classes")(pixels, [0] * len(pixels), ["a"]))


# Runs


def settings(root: Path, output_dir: Path, gigabytes: float, *overrides: str) -> list[str]:
    data = ("data=folder", f"data.root={root}", "data.image_size=16", f"data.memory={gigabytes}", "data.batch_size=5")
    fast = ("trainer.accelerator=cpu", "trainer.max_epochs=2", "trainer.enable_progress_bar=false", *BARE)
    small = ("augment=crop_flip", "normalize=auto", f"output_dir={output_dir}")
    return [*data, *fast, *small, "model=speedrun", "model.widths=[4,4,4]", *overrides]


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory) -> tuple[Path, Path]:
    """Folders of a run from the file and of one in memory; after each save of the former, a copy of the checkpoint."""
    root = tmp_path_factory.mktemp("runs")
    copy = lambda trainer, path: shutil.copy(path, root / f"{trainer.global_step}.ckpt")  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        after_each_save(patch, copy)
        train(schema.compose(*settings(folder, root / "mapped", NOTHING, "checkpoint.every_minutes=0")))
    train(schema.compose(*settings(folder, root / "memory", PLENTY, "checkpoint.every_minutes=0")))
    return root / "mapped", root / "memory"


def test_a_run_has_the_numbers_and_weights_of_one_in_memory(runs):
    one, other = map(last, runs)
    del one["settings"]["data"]["memory"], other["settings"]["data"]["memory"]
    assert differences(one, other) == []
    assert_no_thread_reads()


@pytest.mark.parametrize(("step", "gigabytes"), [(3, NOTHING), (7, PLENTY)])
def test_a_resumed_run_has_them_too_whatever_the_memory(step, gigabytes, runs, folder, tmp_path):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    shutil.copy(runs[0].parent / f"{step}.ckpt", tmp_path / "run/checkpoints/last.ckpt")
    every = "checkpoint.every_minutes=0"
    train(schema.compose(*settings(folder, tmp_path / "run", gigabytes, every, f"resume={tmp_path / 'run'}")))
    one, other = last(tmp_path / "run"), last(runs[1])
    del one["settings"]["data"]["memory"], other["settings"]["data"]["memory"]
    assert differences(one, other) == []


def test_the_memory_is_that_of_the_machine_not_of_the_checkpoint(runs):
    assert not [override for override in of_checkpoint(runs[0]) if "memory" in override]
    assert changed({"data.memory": 5}, {"data": {"memory": 0}}) == {}


def test_evaluations_are_equal(runs, folder, tmp_path):
    fixed = (f"ckpt={runs[0]}/checkpoints/last.ckpt", "split=val", "data=folder", f"data.root={folder}")
    figures = []
    for name, gigabytes in (("mapped", NOTHING), ("memory", PLENTY)):
        own = ("data.image_size=16", f"data.memory={gigabytes}", f"output_dir={tmp_path / name}")
        figures.append(evaluate(schema.compose(*fixed, *own, config_name="evaluate")))
    assert differences(*figures) == []
    tables = [(tmp_path / name / "predictions.csv").read_text() for name in ("mapped", "memory")]
    assert tables[0] == tables[1]


def test_ctrl_c_ends_the_thread(command, folder, tmp_path, monkeypatch):
    def interrupt(*args: object, **kwargs: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr("cifar_lightning.classifier.ImageClassifier.on_train_batch_end", interrupt, raising=False)
    try:
        assert command("train.py", *settings(folder, tmp_path / "run", NOTHING)).code == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert_no_thread_reads()


# The thread


def test_reading_is_at_most_two_parts_ahead_and_in_order():
    started = []
    numbers = torch.arange(9)
    parts = read_ahead(lambda part: started.append(part) or part, numbers)
    assert next(parts) == 0
    assert len(started) <= 3
    assert [*parts] == started[1:] == [*numbers[1:]]
    assert_no_thread_reads()


def test_the_thread_ends_with_a_loop_that_breaks(folder):
    for _ in make_data(folder, NOTHING).train_batches():
        assert threading.active_count() > 1
        break
    assert_no_thread_reads()


def test_an_error_of_the_thread_reaches_the_loop(folder, monkeypatch):
    data = make_data(folder, NOTHING, batch_size=1)
    monkeypatch.setattr(batches, "IMAGES_PER_GATHER", 1)
    read = data.arrays("train").mapped.read
    calls = itertools.count()

    def failing(index, **arguments):
        if next(calls) == 3:
            raise OSError("the disk is gone")
        return read(index, **arguments)

    monkeypatch.setattr(data.arrays("train").mapped, "read", failing)
    seen = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(data.train_batches())  # extend keeps what came before the error
    assert_no_thread_reads()


# The file


def test_pixels_are_mapped_where_those_of_both_splits_do_not_fit(folder, caplog):
    num_bytes = {"train": 30 * 16 * 16 * 3, "test": 8 * 16 * 16 * 3}
    for excess, is_mapped in ((-1, True), (0, False)):
        limit = (sum(num_bytes.values()) + excess) / 1e9
        for train_too in (True, False):
            alone = ImageFolder(folder, train=train_too, image_size=16, memory=limit)
            pair = ImageFolder(folder, train=train_too, image_size=16, memory=limit, pair=True)
            assert [isinstance(one.data, np.memmap) for one in (alone, pair)] == [False, is_mapped]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        make_data(folder, NOTHING)
        make_data(folder, PLENTY)
    (said,) = caplog.messages
    assert said.startswith(f"memory    2.92e-05 GB of pixels, data.memory=0: batches are read from {folder}/")


def test_auto_is_a_share_of_what_is_free_when_the_data_are_set_up(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(mapped, "free_memory", lambda: asked.append(1) or 40_000)
    data = make_data(folder, "auto")
    assert asked == [1]
    assert data.options["memory"] == pytest.approx(mapped.AUTO_SHARE * 40_000 / 1e9)
    assert data.arrays("train").mapped is not None
    monkeypatch.setattr(mapped, "free_memory", lambda: 10**9)
    assert make_data(folder, "auto").arrays("train").mapped is None


@pytest.mark.parametrize(("value", "got"), [(-1, "at least 0"), ("much", "a finite number or auto, got 'much'")])
def test_other_values_are_refused(value, got, folder):
    with pytest.raises(ValueError, match=f"^memory must be {got}"):
        make_data(folder, value)


def test_workers_write_the_file_that_memory_would_be_written_to(tmp_path, monkeypatch):
    root = write_for_workers(write_pets(tmp_path), monkeypatch)
    found = ImageFolder(root, memory=NOTHING).data
    (path,) = cache_files(root)
    content = path.read_bytes()
    path.unlink()
    np.testing.assert_array_equal(found, ImageFolder(root, memory=PLENTY).data)
    assert path.read_bytes() == content
    assert not found.flags.writeable


def test_the_file_is_used_again_and_replaced_if_damaged(tmp_path, caplog):
    root = write_pets(tmp_path)
    expected = ImageFolder(root).data
    (path,) = cache_files(root)
    inode = path.stat().st_ino
    np.testing.assert_array_equal(ImageFolder(root, memory=NOTHING).data, expected)
    assert path.stat().st_ino == inode
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(ImageFolder(root, memory=NOTHING).data, expected)
    assert "its checksum is wrong" in caplog.text


def test_damaged_images_are_listed_and_nothing_is_kept(tmp_path):
    root = write_pets(tmp_path)
    (root / "train/cat/0.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"^1 path in .*train/cat/0.png: not an image of a known format"):
        ImageFolder(root, memory=NOTHING)
    assert cache_files(root) == []


def test_what_fits_neither_into_memory_nor_into_the_folder_is_refused(command, tmp_path):
    root = write_pets(tmp_path / "pets")
    (root / ".cifar-lightning").touch()  # so that no folder can be made there, not even by root
    refusal = command("train.py", "data=folder", f"data.root={root}", "data.memory=0").refusal
    assert refusal.startswith("data.memory must be at least 0.001, the gigabytes that the pixels take, got 0; nor can ")
    assert refusal.endswith("or copy the images to a folder that can be written and name it with data.root=")
    assert command("train.py", "data=folder", f"data.root={root}", *BARE, "trainer.max_steps=1").code == 0


full_disk = partial(namedtuple("Usage", "total used free"), 0, 0)


@pytest.mark.parametrize("num_images", [None, 0, 7, 15], ids=["before", "at once", "while decoding", "at the checksum"])
def test_a_full_disk_is_refused_and_nothing_is_left(num_images, tmp_path, monkeypatch):
    root = write_for_workers(write_pets(tmp_path), monkeypatch)
    if num_images is None:
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: full_disk(100))
    reason = "the disk has 0.00 GB left" if num_images is None else ".*File too large"
    limit = 2**40 if num_images is None else num_images * 3072
    with no_file_above(limit), pytest.raises(ValueError, match=rf"^memory must be .*lightning \({reason}.*data.root=$"):
        ImageFolder(root, memory=NOTHING)
    assert cache_files(root) == []
