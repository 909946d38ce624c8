"""The cache of decoded images."""

import logging
import os
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from file_sizes import no_file_above
from pictures import cache_files, read, write, write_for_workers, write_pets
from PIL import Image

from cifar_lightning.data.folder import ImageFolder


@pytest.fixture
def root(tmp_path) -> Path:
    return write_pets(tmp_path)


@pytest.fixture
def many(root, monkeypatch) -> Path:
    return write_for_workers(root, monkeypatch)


@pytest.mark.parametrize("train", [True, False])
def test_the_second_time_pixels_come_from_the_cache(train, root):
    write(root / "val/dog/0.png")
    first = ImageFolder(root, train=train)
    (path,) = cache_files(root)
    assert path.read_bytes()[:-4] == first.data.tobytes()
    inverted = 255 - first.data  # pixels that no image file holds
    path.write_bytes(inverted.tobytes() + zlib.crc32(inverted.tobytes()).to_bytes(4, "little"))
    second = ImageFolder(root, train=train)
    np.testing.assert_array_equal(second.data, inverted)
    assert second.data.flags.writeable
    assert (second.targets, second.classes, second.num_val) == (first.targets, first.classes, first.num_val)


def test_files_that_exchange_their_names_are_noticed(root):
    one, other = (root / f"train/{name}/same.bmp" for name in ("cat", "dog"))
    for path, value in ((one, 10), (other, 200)):
        Image.new("RGB", (32, 32), (value,) * 3).save(path)
        os.utime(path, ns=(0, 0))
    before = ImageFolder(root)
    one.rename(root / "aside")
    other.rename(one)
    (root / "aside").rename(other)
    after = ImageFolder(root)
    assert not np.array_equal(before.data, after.data)


def test_a_problem_is_reported_and_the_cache_is_kept(root):
    ImageFolder(root)
    kept = cache_files(root)
    (root / "train/cat/notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"1 path in .*notes.txt"):
        ImageFolder(root)
    assert cache_files(root) == kept


def change_content(root: Path) -> None:
    path = root / "train/cat/0.png"
    before = path.stat().st_mtime_ns
    write(path, np.zeros((32, 32, 3), np.uint8))
    os.utime(path, ns=(before, before))  # the size still differs


def change_time(root: Path) -> None:
    os.utime(root / "train/cat/0.png", ns=(1, 1))


def add(root: Path) -> None:
    write(root / "train/cat/2.png")


def remove(root: Path) -> None:
    (root / "train/cat/1.png").unlink()


def rename(root: Path) -> None:
    (root / "train/cat/1.png").rename(root / "train/cat/9.png")


def move_to_another_class(root: Path) -> None:
    (root / "train/cat/1.png").rename(root / "train/dog/9.png")


@pytest.mark.parametrize("change", [change_content, change_time, add, remove, rename, move_to_another_class])
def test_a_change_of_a_file_is_noticed(change, root):
    ImageFolder(root)
    ImageFolder(root, train=False)
    ImageFolder(root, image_size=16)
    before = cache_files(root)
    change(root)
    data = ImageFolder(root)
    files = sorted((root / "train").glob("*/*.png"))
    np.testing.assert_array_equal(data.data, np.stack([read(file) for file in files]))
    after = cache_files(root)
    assert len(after) == len(before) == 3  # the outdated one is gone, those of another split or size are not
    assert len(set(after) & set(before)) == 2


@pytest.mark.parametrize("damage", ["cut", "bit", "longer", "empty", "checksum"])
def test_a_damaged_cache_is_replaced(damage, root, caplog):
    expected = ImageFolder(root).data
    (path,) = cache_files(root)
    content = bytearray(path.read_bytes())
    if damage in ("bit", "checksum"):
        content[100 if damage == "bit" else -1] ^= 1
    path.write_bytes({"cut": content[:-1], "longer": content + b"x", "empty": b""}.get(damage, content))
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(ImageFolder(root).data, expected)
    assert "the images are decoded again" in caplog.text
    caplog.clear()
    ImageFolder(root)
    assert not caplog.records


def test_images_are_read_where_no_cache_can_be_written(root, caplog):
    (root / ".cifar-lightning").touch()
    with caplog.at_level(logging.INFO):
        assert len(ImageFolder(root).data) == 4
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "the decoded images are not cached in" in caplog.text


@pytest.mark.parametrize("num_images", [0, 7, 15], ids=["at once", "while decoding", "at the checksum"])
def test_a_full_disk_costs_the_cache_alone(num_images, many, caplog):
    with caplog.at_level(logging.INFO), no_file_above(num_images * 3072):
        data = ImageFolder(many).data
    assert caplog.text.count("File too large") == 1  # of two threads that write, one reports it
    assert cache_files(many) == []
    np.testing.assert_array_equal(data, ImageFolder(many).data)
    assert len(cache_files(many)) == 1


def test_the_draft_of_a_killed_process_is_removed(root):
    ImageFolder(root, image_size=16)
    (root / ".cifar-lightning/train-32-1.tmp").touch()
    ImageFolder(root)
    assert [path.suffix for path in cache_files(root)] == [".pixels"] * 2


def test_files_that_are_not_the_caches_are_kept(root):
    """As a user may put into any folder."""
    folder = root / ".cifar-lightning"
    ImageFolder(root)
    (ours,) = cache_files(root)
    foreign = ["train-32-notes.txt", "train-32-1.tmp.bak", f"{ours.name}.bak", f"train-32-{'0' * 31}.pixels"]
    foreign += ["train-32-x.tmp", f"train-32-{'G' * 32}.pixels", "train-32-.tmp", "train-320-1.tmp", f"x{ours.name}"]
    for name in foreign:
        (folder / name).write_text("a user's")
    (folder / f"train-32-{'1' * 32}.pixels").mkdir()
    (folder / "train-32-2.tmp").symlink_to(folder / "train-32-notes.txt")
    expected = {*foreign, f"train-32-{'1' * 32}.pixels", "train-32-2.tmp"}
    (root / "train/cat/1.png").unlink()  # so that the cache is written anew
    ImageFolder(root)
    left = {path.name for path in cache_files(root)}
    assert ours.name not in left
    assert left > expected
    assert len(left) == len(expected) + 1
    assert all((folder / name).read_text() == "a user's" for name in foreign)


# Three processes that begin at the same moment; they are forked, since importing takes each longer than reading.
THREE_READERS = """
import os, sys
from cifar_lightning.data.folder import ImageFolder
children = []
for _ in range(3):
    if (child := os.fork()) == 0:
        ImageFolder(sys.argv[1])
        os._exit(0)
    children.append(child)
sys.exit(max(os.waitpid(child, 0)[1] for child in children) != 0)
"""


@pytest.mark.slow
def test_several_processes_may_write_one_cache(root):
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", THREE_READERS, root]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(cache_files(root)) == 1
    fresh = ImageFolder(root).data
    shutil.rmtree(root / ".cifar-lightning")
    assert np.array_equal(fresh, ImageFolder(root).data)


def test_a_linked_cache_is_not_written_into(root, tmp_path, caplog):
    """Nor is anything removed there: the data's folder may have come from anyone."""
    other = tmp_path / "other"
    other.mkdir()
    named = other / f"train-32-{'0' * 32}.pixels"
    named.write_text("of another data set")
    (root / ".cifar-lightning").symlink_to(other)
    with caplog.at_level(logging.INFO):
        ImageFolder(root)
    assert "is a link: there must be a plain folder or none): the next run decodes them again" in caplog.text
    assert list(other.iterdir()) == [named]


def test_a_pipe_as_cache_file_is_not_waited_for(root, tmp_path):
    whole = ImageFolder(root).data
    (ours,) = cache_files(root)
    ours.unlink()
    os.mkfifo(ours)
    ours.with_name("train-32-1.tmp").touch()
    np.testing.assert_array_equal(ImageFolder(root).data, whole)
