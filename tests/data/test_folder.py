import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pictures import read, write, write_pets
from PIL import Image

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
    if missing:  # the other one is read by itself, and as one of a pair it is not
        assert ImageFolder(root, train=missing == "test").classes == ["cat", "dog"]
        with pytest.raises(ValueError, match=rf"{root / missing} is not a folder$"):
            ImageFolder(root, train=missing == "test", pair=True)


def test_a_root_without_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^root must be .*none is given"):
        ImageFolder(None)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match=r"^root must be .*train/ has no folder in it"):
        ImageFolder(tmp_path)


@pytest.mark.parametrize("train", [True, False])
def test_one_message_lists_all_problems_of_a_pair(train, root):
    whole = (root / "train/cat/0.png").read_bytes()
    (root / "train/cat/cut.png").write_bytes(whole[:1000])
    (root / "train/cat/none.png").write_bytes(b"")
    (root / "train/cat/notes.txt").write_text("x")
    (root / "train/cat/text.jpg").write_text("some text\n")
    (root / "train/cat/nowhere.png").symlink_to(root / "absent.png")
    (root / "train/loose.png").write_bytes(whole)
    (root / "train/empty").mkdir()
    write(root / "val/cow/0.png")
    (root / "test/dog/bad.png").write_text("no image")
    found = problems_of(root, train=train, pair=True)
    assert "truncated" in found.pop("train/cat/cut.png")
    assert found == {
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
    alone = problems_of(root, train=train)
    assert len(alone) == (8 if train else 1)
    assert not [path for path in alone if path.startswith("test/") == train]


def problems_of(root: Path, **arguments) -> dict[str, str]:
    """What the one line of a refusal says of each path."""
    with pytest.raises(ValueError, match=rf"^\d+ paths? in {root} cannot be used, remove or mend them: ") as caught:
        ImageFolder(root, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    found = dict(part.split(": ", 1) for part in message.partition("mend them: ")[2].split("; "))
    assert list(found) == sorted(found)
    assert message.startswith(f"{len(found)} path")
    return found


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


@pytest.mark.parametrize(
    ("changed", "new", "problems"),
    [
        (
            "test/dog",
            "test/Dog",
            {"test/dog": "a class without images", "test/Dog": "not a class of train/, but dog is: rename it"},
        ),
        ("test/dog", "test/wolf", {"test/dog": "a class without images", "test/wolf": "not a class of train/"}),
        (None, "test/wolf", {"test/wolf": "not a class of train/"}),
        (None, "train/wolf", {"test/wolf": "a class without images"}),
        ("test/dog", None, {"test/dog": "a class without images"}),
        ("train/dog", None, {"test/dog": "not a class of train/"}),
    ],
)
def test_the_test_folder_has_the_classes_of_train_in_a_pair_and_its_own_by_itself(changed, new, problems, root):
    if changed:
        (root / changed).rename(root / new if new else root / ".away")
    elif new:
        write(root / new / "0.png")
    assert problems_of(root, train=False, pair=True) == problems
    for train in (True, False):
        names = os.listdir(root / ("train" if train else "test"))
        data = ImageFolder(root, train=train)
        assert data.classes == sorted(names)
        assert set(data.targets) == set(range(len(names)))


def test_an_empty_class_is_refused_in_the_split_that_has_it(root):
    (root / "test/cow").mkdir()
    assert problems_of(root, train=False) == {"test/cow": "a class without images"}
    assert len(ImageFolder(root).data) == 4


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


def test_a_background_is_part_of_the_data_and_of_the_cache(root):
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(root / "train" / "cat" / "0.png")
    dark = ImageFolder(root).data
    light = ImageFolder(root, background="#ffeedd").data
    assert light[0].reshape(-1, 3).tolist() == [[255, 238, 221]] * 1024
    assert np.array_equal(ImageFolder(root).data, dark)
    assert np.array_equal(ImageFolder(root, background="#ffeedd").data, light)


@pytest.mark.parametrize("background", ["purpel", "", "#12345678", "1"])
def test_a_background_is_a_colour(root, background):
    with pytest.raises(ValueError, match=r"background must be a colour such as white, black or #ff8800, or null, got"):
        ImageFolder(root, background=background)
