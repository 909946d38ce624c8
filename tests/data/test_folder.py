import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pictures import read, write, write_pets

from cifar_lightning.data.arrays import fetch, to_arrays
from cifar_lightning.data.folder import ImageFolder


@pytest.fixture
def root(tmp_path) -> Path:
    return write_pets(tmp_path)


def test_images_are_sorted_by_class_and_path_and_keep_their_pixels(root):
    data = ImageFolder(root)
    assert data.classes == ["cat", "dog"]
    assert data.targets == [0, 0, 1, 1]
    assert data.num_val == 0
    assert data.data.dtype == np.uint8
    files = [root / "train" / name for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")]
    np.testing.assert_array_equal(data.data, np.stack([read(file) for file in files]))


def test_test_images_come_from_the_test_folder(root):
    data = ImageFolder(str(root), train=False, download=True)
    assert (data.targets, data.num_val) == ([0, 1], 0)
    np.testing.assert_array_equal(data.data[1], read(root / "test/dog/0.png"))


def test_validation_images_follow_the_training_images(root):
    write(root / "val/cat/0.png")  # and none of a dog: a class may have no validation images
    data = ImageFolder(root)
    assert (data.targets, data.num_val) == ([0, 0, 1, 1, 0], 1)
    np.testing.assert_array_equal(data.data[-1], read(root / "val/cat/0.png"))
    assert ImageFolder(root, train=False).num_val == 0


def test_its_arrays_have_channels_first(root):
    arrays = to_arrays(fetch(ImageFolder, root=root, train=True))
    assert arrays.images.shape == (4, 3, 32, 32)
    assert arrays.classes == ("cat", "dog")


def test_nested_folders_belong_to_their_class(root):
    nested = write(root / "train/cat/0/deep/x.JPG")
    data = ImageFolder(root)
    assert data.targets == [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(data.data[1], read(nested))  # "0.png" sorts before "0/deep/x.JPG"


def test_a_link_to_a_file_is_read(root):
    (root / "train/cat/2.png").symlink_to(root / "test/cat/0.png")
    np.testing.assert_array_equal(ImageFolder(root).data[2], read(root / "test/cat/0.png"))


def test_images_have_the_size_that_is_asked_for(root):
    assert ImageFolder(root, image_size=48).data.shape == (4, 48, 48, 3)


# What cannot be used


@pytest.mark.parametrize("image_size", [0, -1, 1025])
def test_an_image_size_out_of_range_is_refused(image_size, root):
    with pytest.raises(ValueError, match=rf"image_size must be in \[1, 1024\], got {image_size}"):
        ImageFolder(root, image_size=image_size)


@pytest.mark.parametrize("missing", ["", "train", "test"])
def test_root_must_have_the_split_that_is_read(missing, root):
    shutil.rmtree(root / missing)
    with pytest.raises(ValueError, match=rf"^root must be .*train/<class>/.*{root / missing} is not a folder$"):
        ImageFolder(root, train=missing != "test")
    if missing:  # the other one is read
        assert ImageFolder(root, train=missing == "test").classes == ["cat", "dog"]


def test_a_root_without_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^root must be .*none is given"):
        ImageFolder(None)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match=r"^root must be .*train/ has no folder in it"):
        ImageFolder(tmp_path)


def test_one_message_lists_all_problems(root):
    whole = (root / "train/cat/0.png").read_bytes()
    (root / "train/cat/cut.png").write_bytes(whole[:1000])
    (root / "train/cat/none.png").write_bytes(b"")
    (root / "train/cat/notes.txt").write_text("x")
    (root / "train/cat/text.jpg").write_text("some text\n")
    (root / "train/cat/nowhere.png").symlink_to(root / "absent.png")
    (root / "train/loose.png").write_bytes(whole)
    (root / "train/empty").mkdir()
    write(root / "val/cow/0.png")
    (root / "test/dog/bad.png").write_text("no image")  # in the split that is not read
    with pytest.raises(ValueError, match=f"10 paths in {root} cannot be used, remove or mend them: ") as caught:
        ImageFolder(root)
    message = str(caught.value)
    assert "\n" not in message
    listed = dict(part.split(": ", 1) for part in message.partition("mend them: ")[2].split("; "))
    assert list(listed) == sorted(listed)
    assert "truncated" in listed.pop("train/cat/cut.png")
    assert listed == {
        "train/cat/none.png": "empty",
        "train/cat/notes.txt": "not an image, by its extension",
        "train/cat/nowhere.png": "No such file or directory",
        "train/cat/text.jpg": "not an image of a known format",
        "test/dog/bad.png": "not an image of a known format",
        "test/empty": "a class without images",
        "train/empty": "a class without images",
        "train/loose.png": "not in the folder of a class",
        "val/cow": "not a class of train/",
    }


def test_links_that_lead_in_a_circle_are_refused(root):
    (root / "train/cat/loop").symlink_to("loop")
    (root / "train/cat/around").symlink_to("..", target_is_directory=True)
    reasons = "train/cat/around: a link to a folder that contains it; train/cat/loop: Too many levels of symbolic links"
    with pytest.raises(ValueError, match=f"^2 paths in .*: {reasons}$"):
        ImageFolder(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_refused_without_waiting(root):
    os.mkfifo(root / "train/cat/pipe.png")
    with pytest.raises(ValueError, match=r"^1 path in .*: train/cat/pipe.png: not a file$"):
        ImageFolder(root)


def test_a_long_list_of_problems_is_cut(root):
    for number in range(13):
        (root / f"train/cat/bad{number:02}.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"^13 paths .*bad09.png: [^;]*; and 3 more$"):
        ImageFolder(root)


def test_the_test_folder_must_have_the_classes_of_train(root):
    (root / "test/dog").rename(root / "test/wolf")
    with pytest.raises(ValueError, match=r"2 paths .*/dog: a class without images; test/wolf: not a class of train/"):
        ImageFolder(root, train=False)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_of_unknown_range_is_refused(dtype, root):
    write(root / "train/cat/x.tif", np.ones((32, 32), dtype))
    with pytest.raises(ValueError, match=r"train/cat/x.tif: its 32-bit pixels have no known range"):
        ImageFolder(root)


def test_a_file_of_an_unknown_format_starts_no_program(root, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)  # Pillow reads PostScript with Ghostscript
    (root / "train/cat/x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(ValueError, match=r"train/cat/x.png: a document by its content"):
        ImageFolder(root)
