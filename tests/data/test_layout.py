"""Names of splits, and roots that are laid out otherwise."""

import logging
import os
import re
from pathlib import Path

import pytest
from pictures import write, write_pets

from cifar_lightning.data.folder import ImageFolder


@pytest.fixture
def root(tmp_path) -> Path:
    return write_pets(tmp_path / "pets")


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev"])
def test_the_validation_images_may_have_any_of_the_usual_names(name, root, caplog):
    write(root / name / "dog/0.png")
    with caplog.at_level(logging.INFO):
        data = ImageFolder(root)
    assert (data.targets, data.num_val) == ([0, 0, 1, 1, 1], 1)
    assert not caplog.records


@pytest.mark.parametrize("names", [("val", "valid"), ("dev", "validation"), ("Val", "valid"), ("val", "VAL")])
def test_several_folders_of_validation_images_are_refused(names, root):
    for name in names:
        write(root / name / "dog/0.png")
    shown = ", ".join(f"{name}/" for name in sorted(names))
    if len(os.listdir(root)) < 4:
        pytest.skip("this file system does not tell upper case from lower")
    with pytest.raises(ValueError, match=f"^root must have one folder of validation images, {root} has {shown}: put"):
        ImageFolder(root)


@pytest.mark.parametrize("name", ["Val", "VALID", "Validation", "Dev"])
def test_upper_case_validation_images_are_not_passed_over(name, root):
    write(root / name / "dog/0.png")
    if (root / name.lower()).is_dir():
        pytest.skip("this file system does not tell upper case from lower")
    with pytest.raises(ValueError, match=f"^root must have its validation images in val/, {root} has {name}/: rename"):
        ImageFolder(root)


def test_a_folder_of_validation_images_is_not_empty(root):
    (root / "valid").mkdir()
    with pytest.raises(ValueError, match=r"^1 path in .*: valid: no images in it$"):
        ImageFolder(root)
    (root / "valid/cat").mkdir()
    with pytest.raises(ValueError, match=r"^1 path in .*: valid: no images in it$"):
        ImageFolder(root)


@pytest.mark.parametrize(
    ("split", "name"),
    [
        *(
            ("train", "Train"),
            ("train", "TRAIN"),
            ("train", "training"),
            ("train", "Training"),
            ("train", "train_images"),
        ),
        *(("test", "Test"), ("test", "testing"), ("test", "tests"), ("test", "TestSet")),
    ],
)
def test_a_split_of_a_similar_name_is_named(split, name, root):
    (root / split).rename(root / name)
    if (root / split).is_dir():
        pytest.skip("this file system does not tell upper case from lower")
    with pytest.raises(ValueError, match=rf"{root / split} is not a folder; is it {name}/\? rename it to {split}$"):
        ImageFolder(root, train=split == "train")


def test_a_root_one_folder_too_high_or_too_low(root):
    with pytest.raises(ValueError, match=rf"{root.parent}/train is not a folder; did you mean {root}\?$"):
        ImageFolder(root.parent)
    with pytest.raises(ValueError, match=rf"{root}/train/train is not a folder; did you mean {root}\?$"):
        ImageFolder(root / "train")


def test_a_root_that_is_the_folder_of_a_class(root):
    with pytest.raises(
        ValueError, match=r"; its images are in no folder: make train/ and test/, with a folder per class$"
    ):
        ImageFolder(root / "train/cat")


def test_classes_without_a_split(root):
    with pytest.raises(
        ValueError, match="; cat, dog have images, but in no split: make train/ and test/, with a folder"
    ):
        ImageFolder((root / "train").rename(root.parent / "unsplit"))


def test_a_split_without_folders_of_classes(root):
    (root / "train/cat").rename(root / "aside")
    (root / "train/dog").rename(root / "aside2")
    write(root / "train/0.jpg")
    expected = "train/ has no folder in it, but images: put them into a folder per class, train/<class>/$"
    with pytest.raises(ValueError, match=expected):
        ImageFolder(root)


def test_a_root_that_cannot_exist_is_refused():
    for root in ("~no such user/x", "a" * 300, "nul\0"):
        with pytest.raises(ValueError, match=r"^root must be a folder .* is not a folder$"):
            ImageFolder(root)


# Names of classes


def test_a_class_whose_name_is_not_utf_8_is_refused(root):
    name = b"ca\xfft"
    for split in ("train", "test", "val"):
        write(root / split / os.fsdecode(name) / "0.png")
    reason = r"ca\\udcfft: a class whose name is not valid UTF-8: rename it"
    with pytest.raises(ValueError, match=f"^3 paths .*: test/{reason}; train/{reason}; val/{reason}$") as caught:
        ImageFolder(root, pair=True)
    assert str(caught.value).isascii()


@pytest.mark.parametrize("name", [" ", "\t", "\n", "\u200b", "\u3000 "])
def test_a_class_whose_name_cannot_be_seen_is_refused(name, root):
    for split in ("train", "test"):
        write(root / split / name / "0.png")
    with pytest.raises(
        ValueError, match=r"^2 paths .*: a class whose name has no visible character: rename it"
    ) as caught:
        ImageFolder(root, pair=True)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", ["a b", "é", "two\nlines", "\x1b[31mred", "x" * 255, "😀", "a;b: c", "-", "%s", "[red]"]
)
def test_a_class_may_have_any_other_name(name, root):
    for split in ("train", "test"):
        write(root / split / name / "0.png")
    assert name in ImageFolder(root).classes


@pytest.mark.parametrize(
    ("of_train", "of_test", "reason"),
    [
        ("dog", "Dog", "not a class of train/, but dog is: rename it"),
        (
            "caf\u00e9",
            "cafe\u0301",
            "not a class of train/, but caf\u00e9 is, with its accents stored in another form: rename",
        ),
        ("dog", "wolf", "not a class of train/$"),
    ],
)
def test_a_class_of_a_split_that_train_has_under_another_name(of_train, of_test, reason, root):
    write(root / "train" / of_train / "0.png")
    write(root / "test" / of_train / "0.png")
    write(root / "val" / of_test / "0.png")
    if (root / "val" / of_train).is_dir():
        pytest.skip("this file system takes both names for one")
    with pytest.raises(ValueError, match=rf"^1 path .*: val/{of_test}: {reason}"):
        ImageFolder(root)


def test_classes_that_differ_in_case_alone_are_read_and_named(root, caplog):
    for split in ("train", "test"):
        write(root / split / "Dog/0.png")
    if len(os.listdir(root / "train")) < 3:
        pytest.skip("this file system does not tell upper case from lower")
    with caplog.at_level(logging.INFO):
        assert ImageFolder(root).classes == ["Dog", "cat", "dog"]
    assert re.fullmatch("classes   Dog, dog differ in upper and lower case alone, or .*", caplog.messages[0])


# Links, and what cannot be read


def test_splits_and_classes_may_be_links(root):
    for number, name in enumerate(("train/dog", "test", "train")):
        (root / name).rename(root.parent / str(number))
        (root / name).symlink_to(root.parent / str(number), target_is_directory=True)
    (root / "val").symlink_to(root / "test")
    data = ImageFolder(root)
    assert (data.classes, data.targets, data.num_val) == (["cat", "dog"], [0, 0, 1, 1, 0, 1], 2)


def test_links_among_classes_that_lead_in_a_circle_are_refused(root):
    for number in range(3):  # followed 40 deep, three in each folder would take for ever
        (root / f"train/cat/{number}").symlink_to("../dog", target_is_directory=True)
        (root / f"train/dog/{number}").symlink_to("../cat", target_is_directory=True)
    (root / "train/around").symlink_to("..", target_is_directory=True)
    with pytest.raises(
        ValueError, match=r"^20 paths .*: test/around: a class without images; train/around: a link to a"
    ):
        ImageFolder(root, pair=True)


def test_a_broken_link_beside_the_classes(root):
    (root / "train/cow").symlink_to("nowhere")
    (root / "test/loop").symlink_to("loop")
    reasons = "test/loop: Too many levels of symbolic links; train/cow: No such file or directory"
    with pytest.raises(ValueError, match=f"^2 paths .*: {reasons}$"):
        ImageFolder(root, pair=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train", "^root must be .*: train/ cannot be read: Permission denied$"),
        ("test", "^1 path in .*: test: Permission denied$"),
        ("train/cat", "^1 path in .*: train/cat: Permission denied$"),
        ("test/cat", "^1 path in .*: test/cat: Permission denied$"),
        ("train/cat/nested", "^1 path in .*: train/cat/nested: Permission denied$"),
    ],
)
def test_a_folder_that_may_not_be_read(name, expected, root, monkeypatch):
    write(root / "train/cat/nested/0.png")
    refuse(root / name, monkeypatch)
    with pytest.raises(ValueError, match=expected):
        ImageFolder(root, train=name.startswith("train"), pair=True)


def test_a_test_folder_that_may_not_be_read_by_itself(root, monkeypatch):
    refuse(root / "test", monkeypatch)
    with pytest.raises(ValueError, match=r"^root must be .*: test/ cannot be read: Permission denied$"):
        ImageFolder(root, train=False)


def refuse(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let listing a folder fail, as for a user who may not: root, whom tests may run as, always may."""

    def refusing(call):
        def listing(path):
            if Path(path) == folder:
                raise PermissionError(13, "Permission denied", str(path))
            return call(path)

        return listing

    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
