"""Hidden files, and what systems leave behind in folders of images."""

import logging
from pathlib import Path

import pytest
from pictures import write, write_pets

from cifar_lightning.data.folder import ImageFolder

FOLDERS = (
    *("@eaDir", "__MACOSX", ".AppleDouble", "$RECYCLE.BIN", "$Recycle.Bin", "System Volume Information", "lost+found"),
    *(".ipynb_checkpoints", "#recycle", "#snapshot", "@Recycle", ".git", ".Trash-1000", "__pycache__", "@tmp"),
)
FILES = (
    *("desktop.ini", "Desktop.ini", "Thumbs.db", "thumbs.db", "._0.png", ".DS_Store", "Icon\r", "ehthumbs.db"),
    *("0.png:Zone.Identifier", "0.png\uf03aZone.Identifier", "Thumbs.db:encryptable", "0.png@SynoEAStream"),
)
LEVELS = (".", "train", "test", "val", "train/cat", "test/cat", "train/cat/nested")


@pytest.fixture
def root(tmp_path) -> Path:
    write_pets(tmp_path)
    write(tmp_path / "val/cat/0.png")
    write(tmp_path / "train/cat/nested/0.png")
    return tmp_path


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_of_litter_are_no_classes_and_their_images_are_not_read(name, root, caplog):
    for level in LEVELS:
        write(root / level / name / "0.png")
        (root / level / name / "SYNOPHOTO_THUMB_M.jpg").write_bytes(b"not an image")
    check_nothing_is_noticed(root, caplog)


@pytest.mark.parametrize("name", FILES)
def test_files_of_litter_are_not_read(name, root, caplog):
    for level in LEVELS:
        (root / level / name).write_bytes(b"not an image")
    check_nothing_is_noticed(root, caplog)


def check_nothing_is_noticed(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        data, test = ImageFolder(root), ImageFolder(root, train=False)
    assert (data.classes, data.targets, data.num_val) == (["cat", "dog"], [0, 0, 0, 1, 1, 0], 1)
    assert test.targets == [0, 1]
    assert not caplog.records


@pytest.mark.parametrize(
    "name", ["thumbs", "recycle", "macosx", "recycled", "eadir", "tmp", "@home", "#1", "$", "icon"]
)
def test_a_class_may_be_named_almost_as_litter(name, root):
    for split in ("train", "test"):
        write(root / split / name / "0.png")
    assert name in ImageFolder(root).classes


def test_an_image_that_is_left_in_the_cloud_is_missed(root):
    (root / "train/cat/.2.png.icloud").touch()
    reason = "train/cat/.2.png.icloud: in iCloud and not on this disk: download it"
    with pytest.raises(ValueError, match=f"^1 path .*: {reason}$"):
        ImageFolder(root)


def test_what_else_is_in_the_root_is_said(root, caplog):
    (root / "README.md").touch()
    (root / "unlabelled").mkdir()
    (root / "Training").mkdir()
    (root / "Thumbs.db").touch()
    with caplog.at_level(logging.INFO):
        ImageFolder(root)
        ImageFolder(root, train=False)
    expected = f"unused    README.md, Training/, unlabelled/ in {root}: images are read from train/, val/, test/"
    assert caplog.messages == [expected]


def test_many_unused_files_are_counted(root, caplog):
    for number in range(13):
        (root / f"{number:02}.txt").touch()
    with caplog.at_level(logging.INFO):
        ImageFolder(root)
    assert "unused    00.txt, 01.txt" in caplog.text
    assert "09.txt and 3 more in" in caplog.text
