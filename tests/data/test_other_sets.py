"""Other test sets: read as they are, or refused in one line, and nothing in them is run."""

import logging
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from conftest import CLASSES
from known_sets import data_of, write_corrupted, write_new, write_noisy
from pictures import noise
from PIL import Image

from cifar_lightning.data.other_sets import COMMON, EXTRA, read_other_sets
from cifar_lightning.errors import UserError


def pixels(num_images: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8)


def read(root, *asked: str, split: str = "test", **changes):
    return read_other_sets(asked or ("auto",), data_of(root, **changes), split)


def gathered(arrays) -> torch.Tensor:
    return arrays.gather(torch.arange(len(arrays.targets)))


def test_nothing_is_there(tmp_path):
    assert read(tmp_path) == []
    assert read(None) == []
    assert read_other_sets((), data_of(tmp_path), "test") == []


def test_cifar_10_1(tmp_path):
    images, labels = pixels(7), [9, 0, 3, 3, 1, 2, 8]
    write_new(tmp_path, "v6", images, labels)
    (found,) = read(tmp_path)
    assert (found.name, found.source, found.is_paired, found.num_severities) == (
        "CIFAR-10.1 v6",
        "CIFAR-10.1",
        False,
        1,
    )
    assert found.arrays.targets.tolist() == labels
    assert torch.equal(gathered(found.arrays), torch.from_numpy(images).permute(0, 3, 1, 2))
    assert found.arrays.mapped is not None  # and so takes no memory
    write_new(tmp_path, "v4", pixels(3), [1, 1, 1])
    assert [other.name for other in read(tmp_path, "CIFAR-10.1")] == ["CIFAR-10.1 v4", "CIFAR-10.1 v6"]


def test_a_checkpoint_with_the_classes_in_another_order(tmp_path):
    write_new(tmp_path, "v6", pixels(2), [0, 9])
    write_corrupted(tmp_path, {"fog": pixels(100)}, [i % 10 for i in range(20)])
    np.save(tmp_path / "cifar10h-counts.npy", 5 * np.eye(10, dtype=np.int64)[[i % 10 for i in range(20)]])
    write_noisy(tmp_path / "CIFAR-10_human.pt", clean_label=[i % 10 for i in range(40)])
    data = data_of(tmp_path)
    data.take_classes([*reversed(CLASSES)])
    new, corrupted, human = read_other_sets(["auto"], data, "test")
    assert new.arrays.targets.tolist() == [9, 0]
    assert corrupted.is_paired
    assert torch.equal(human.targets, data.targets("test"))
    assert torch.equal(human.shares, torch.eye(10, dtype=torch.float64)[data.targets("test")])
    for noisy in read_other_sets(["auto"], data, "val"):
        assert torch.equal(noisy.targets, data.targets("val"))


def test_cifar_10_c(tmp_path):
    images = {kind: pixels(100, seed) for seed, kind in enumerate(("fog", "saturate", "gaussian_noise"))}
    write_corrupted(tmp_path, images, [i % 10 for i in range(20)])
    found = read(tmp_path)
    assert [other.name for other in found] == [f"CIFAR-10-C {kind}" for kind in ("gaussian_noise", "fog", "saturate")]
    assert all(other.is_paired and other.num_severities == 5 for other in found)
    assert torch.equal(gathered(found[1].arrays), torch.from_numpy(images["fog"]).permute(0, 3, 1, 2))
    assert found[0].note == "accuracy and loss are means over 5 severities; 3 of its 19 corruptions are there"
    assert len({*COMMON, *EXTRA}) == 19
    # Other labels than those of the test images: they are not paired, and say so.
    write_corrupted(tmp_path, images, [3] * 20)
    assert all(not other.is_paired and "not paired: its labels" in other.note for other in read(tmp_path))


def test_cifar_10h(tmp_path):
    counts = 40 * np.eye(10, dtype=np.int64)[[i % 10 for i in range(20)]]
    counts[0] = [10, 30, 0, 0, 0, 0, 0, 0, 0, 0]
    counts[1, 2] = 10
    np.save(tmp_path / "cifar10h-counts.npy", counts)
    (found,) = read(tmp_path)
    assert found.targets.tolist() == [1, *(i % 10 for i in range(1, 20))]
    assert found.shares[0].tolist() == [0.25, 0.75, *[0.0] * 8]
    assert found.shares[1].tolist() == [0, 0.8, 0.2, *[0.0] * 7]
    people = 100 * (18 + 0.25 + 0.8) / 20
    assert found.note.endswith(f"Of people's labels {people:.2f} % are the data's, of their majorities 95.00 %")
    (tmp_path / "cifar10h-counts.npy").rename(tmp_path / "counts.npy")
    np.save(tmp_path / "cifar10h-probs.npy", counts / counts.sum(1, keepdims=True))
    (same,) = read(tmp_path)
    assert torch.equal(same.shares, found.shares)
    np.save(tmp_path / "cifar10h-probs.npy", np.roll(counts / counts.sum(1, keepdims=True), 1, axis=0))
    with pytest.raises(ValueError, match=r"agree with the label of 5\.0 % of the test images alone, so that it is for"):
        read(tmp_path)


def test_cifar_10n_is_for_the_validation_images(tmp_path, caplog):
    clean = [i % 10 for i in range(40)]
    worse = [(i * 7 + 1) % 10 for i in range(40)]
    write_noisy(tmp_path / "CIFAR-10_human.pt", clean_label=clean, worse_label=worse)
    data = data_of(tmp_path)
    found = {other.name: other for other in read_other_sets(["auto"], data, "val")}
    assert list(found) == [f"CIFAR-10N {name}" for name in ("aggre", "worse", "random 1", "random 2", "random 3")]
    assert found["CIFAR-10N worse"].targets.tolist() == [worse[index] for index in data.index["val"]]
    assert torch.equal(found["CIFAR-10N aggre"].targets, data.targets("val"))
    with caplog.at_level(logging.INFO):
        assert read_other_sets(["auto"], data, "test") == []
    assert "CIFAR-10N in" in caplog.text
    assert "it is for split=val" in caplog.text
    write_noisy(tmp_path / "CIFAR-10_human.pt", clean_label=[1, *clean[1:]])
    with pytest.raises(ValueError, match=r"1 of its 40 clean labels are not those of the training images"):
        read_other_sets(["auto"], data, "val")


@pytest.fixture
def photos(tmp_path):
    for number, name in enumerate(("cat", "truck")):
        for i in range(3):
            path = tmp_path / "photos" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise(32 + number, 32)).save(path)
    return tmp_path / "photos"


def test_a_folder_of_some_of_the_classes(tmp_path, photos):
    (bare,) = read(None, str(photos))
    assert bare.arrays.targets.tolist() == [CLASSES.index("cat")] * 3 + [CLASSES.index("truck")] * 3
    assert bare.note == "2 of 10 classes: cat, truck"
    photos.rename(tmp_path / "test")
    (tmp_path / "photos" / "train").mkdir(parents=True)
    (tmp_path / "test").rename(tmp_path / "photos" / "test")
    (with_test,) = read(None, str(photos))
    assert with_test.fingerprint == bare.fingerprint
    with_test, again = read(None, str(photos), str(photos / "test"))
    assert again.fingerprint == with_test.fingerprint


def refusal(root, *asked: str, **options) -> str:
    with pytest.raises((ValueError, UserError)) as error:
        read(root, *asked, **options)
    assert "\n" not in str(error.value)
    assert str(error.value).isprintable()
    return str(error.value)


def test_what_is_asked_for_must_be_there_and_fit(tmp_path, photos):
    assert "CIFAR-10-C is not in data.root=" in refusal(tmp_path, "CIFAR-10-C")
    assert "CIFAR-10H is not in data.root=None" in refusal(None, "CIFAR-10H")
    known = "auto, CIFAR-10.1, CIFAR-10-C, CIFAR-10H, CIFAR-10N"
    assert refusal(tmp_path, "cifar-10-c") == f"cifar-10-c is neither a folder nor one of {known}"
    assert "CIFAR-10N cannot be evaluated here: it is for split=val" in refusal(tmp_path, "CIFAR-10N")
    (photos / "cat").rename(photos / "a\x1b[31mcat")
    assert r"has the classes a\x1b[31mcat, which are not among airplane" in refusal(tmp_path, str(photos))
    (photos / "truck" / "note.txt").write_text("hello")
    assert "1 path in" in refusal(tmp_path, str(photos))
    (tmp_path / "empty").mkdir()
    assert "must hold a folder of images per class" in refusal(tmp_path, str(tmp_path / "empty"))
    (tmp_path / "empty" / "cat").mkdir()
    assert "cat: a class without images" in refusal(tmp_path, str(tmp_path / "empty"))


def test_data_that_are_not_cifar_10s_have_no_known_sets(tmp_path, caplog):
    write_new(tmp_path, "v6", pixels(2), [0, 9])
    other = [*CLASSES[:-1], "lorry"]
    with caplog.at_level(logging.INFO):
        assert read(tmp_path, classes=other) == []
    assert "it has the classes of CIFAR-10, the data have airplane" in caplog.text
    assert "CIFAR-10.1 cannot be evaluated here: it has the classes" in refusal(tmp_path, "CIFAR-10.1", classes=other)
    grey = {"data": np.zeros((20, 32, 32), np.uint8), "num_train": 20}
    assert "the data have images of 1x32x32" in refusal(tmp_path, "CIFAR-10.1", **grey)
    assert "read as squares of 3 channels" in refusal(tmp_path, str(tmp_path), **grey)


class Runs:
    """What a pickle would call: it makes a file, which shows that it ran."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def header(text: str) -> bytes:
    content = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content


HOSTILE = {
    "wrong dtype": lambda path: np.save(path, np.zeros((4, 32, 32, 3), np.float32)),
    "wrong shape": lambda path: np.save(path, np.zeros((4, 3, 32, 32), np.uint8)),
    "flat": lambda path: np.save(path, np.zeros(10, np.uint8)),
    "no images": lambda path: np.save(path, np.zeros((0, 32, 32, 3), np.uint8)),
    "objects": lambda path: np.save(path, np.array([Runs(path.parent / "ran")], object), allow_pickle=True),
    "records": lambda path: np.save(path, np.zeros(4, [("a\x1b", "u1")])),
    "texts": lambda path: np.save(path, np.array(["a"])),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Runs(path.parent / "ran"))),
    "an archive": lambda path: (np.savez(path.with_suffix(".npz"), pixels(4)), path.with_suffix(".npz").rename(path)),
    "empty": lambda path: path.write_bytes(b""),
    "html": lambda path: path.write_bytes(b"<!doctype html>"),
    "magic alone": lambda path: path.write_bytes(b"\x93NUMPY"),
    "truncated": lambda path: (np.save(path, pixels(4)), path.write_bytes(path.read_bytes()[:3000])),
    "huge": lambda path: path.write_bytes(
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000, 32, 32, 3)}")
    ),
    "overflowing": lambda path: path.write_bytes(
        header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**62}, {2**62}, 32, 3)}}")
    ),
    "negative": lambda path: path.write_bytes(
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (-4, 32, 32, 3)}")
    ),
    "nested": lambda path: path.write_bytes(header("(" * 100)),
    "code": lambda path: path.write_bytes(header(f"__import__('os').mkdir({str(path.parent / 'ran')!r})")),
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_arrays(tmp_path, name):
    write_new(tmp_path, "v6", pixels(4), [0, 1, 2, 3])
    path = tmp_path / "cifar10.1_v6_data.npy"
    path.unlink()
    HOSTILE[name](path)
    assert str(path) in refusal(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, 2, 10]), r"4 whole numbers in \[0, 10\), got 0 to 10"),
        (np.array([0, 1, 2, -1]), r"got -1 to 2"),
        (np.array([0, 1, 2]), r"got int64 of \(3,\)"),
        (np.array([0.0, 1, 2, 3]), r"got float64 of \(4,\)"),
        (np.eye(4, dtype=int), r"got int64 of \(4, 4\)"),
        (np.array([True] * 4), r"got bool of \(4,\)"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, message):
    write_new(tmp_path, "v6", pixels(4), [0, 1, 2, 3])
    np.save(tmp_path / "cifar10.1_v6_labels.npy", labels)
    assert re.search(message, refusal(tmp_path))


def test_parts_of_sets_that_are_not_whole(tmp_path):
    write_new(tmp_path, "v6", pixels(4), [0, 1, 2, 3])
    (tmp_path / "cifar10.1_v6_labels.npy").unlink()
    assert "cifar10.1_v6_labels.npy cannot be read: No such file" in refusal(tmp_path)
    (tmp_path / "cifar10.1_v6_data.npy").unlink()
    (tmp_path / "CIFAR-10-C").mkdir()
    assert "must hold files such as gaussian_noise.npy" in refusal(tmp_path)
    write_corrupted(tmp_path, {"fog": pixels(100), "snow": pixels(95)}, [0] * 20)
    assert "5 times as many images as there are test images in each file, got 95, 100" in refusal(tmp_path)
    write_corrupted(tmp_path, {"fog": pixels(101), "snow": pixels(101)}, [0] * 20)
    assert "in each file, got 101" in refusal(tmp_path)
    write_corrupted(tmp_path, {"fog": pixels(100), "snow": pixels(100)}, [0] * 20)
    np.save(tmp_path / "CIFAR-10-C" / "labels.npy", np.arange(100) % 7)
    assert "must hold the labels of the test images 5 times over" in refusal(tmp_path)
    np.save(tmp_path / "CIFAR-10-C" / "fog.npy", np.zeros((100, 64, 64, 3), np.uint8))
    assert "must hold images of (N, 32, 32, 3), got (100, 64, 64, 3)" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.ones((19, 10)), r"must have the shape \(20, 10\), got \(19, 10\)"),
        (-np.eye(10)[[i % 10 for i in range(20)]], "numbers of at least 0, and above 0 for some class of each image"),
        (np.zeros((20, 10)), "numbers of at least 0, and above 0"),
        (np.full((20, 10), np.nan), "numbers of at least 0, and above 0"),
        (2 * np.eye(10)[[i % 10 for i in range(20)]], "shares that sum to 1, got sums of 2 to 2"),
    ],
)
def test_shares_that_are_none(tmp_path, counts, message):
    np.save(tmp_path / "cifar10h-probs.npy", counts)
    assert re.search(message, refusal(tmp_path))


def torch_file(path, content: object) -> None:
    torch.save(content, path)


def compressed(path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))


CLEAN = np.arange(40) % 10
NAMES = ("clean_label", "aggre_label", "worse_label", "random_label1", "random_label2", "random_label3")
HOSTILE_LABELS = {
    "a class": lambda path: torch_file(path, {"clean_label": Runs(path.parent / "ran")}),
    "a bare pickle": lambda path: path.write_bytes(pickle.dumps(Runs(path.parent / "ran"))),
    "a list": lambda path: torch_file(path, [1, 2]),
    "tensors": lambda path: torch_file(path, {name: torch.arange(40) % 10 for name in NAMES}),
    "objects": lambda path: torch_file(path, {name: np.array([[1], 2], object) for name in NAMES}),
    "one missing": lambda path: torch_file(path, {name: CLEAN for name in NAMES[:-1]}),
    "too few": lambda path: torch_file(path, {name: CLEAN[:-1] for name in NAMES}),
    "out of range": lambda path: torch_file(path, {name: CLEAN + 1 for name in NAMES}),
    "compressed": compressed,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: (
        torch_file(path, {name: CLEAN for name in NAMES}),
        path.write_bytes(path.read_bytes()[:900]),
    ),
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("name", HOSTILE_LABELS)
def test_hostile_labels(tmp_path, name):
    path = tmp_path / "CIFAR-10_human.pt"
    HOSTILE_LABELS[name](path)
    assert str(path) in refusal(tmp_path, split="val")
    assert not (tmp_path / "ran").exists()
