"""A data set of one's own with one thing wrong: one message that names it, before anything is trained."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_lightning.data import ImageDataModule
from cifar_lightning.data.arrays import to_arrays


def of_form(**changed) -> SimpleNamespace:
    """Six images of three classes in torchvision's form, with other attributes for some."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    attributes = {"data": pixels, "targets": [0, 1, 2, 0, 1, 2], "classes": ["cat", "dog", "goat"], **changed}
    return SimpleNamespace(**{name: value for name, value in attributes.items() if value is not None})


RIGHT = {
    "as lists": {"data": of_form().data.tolist()},  # of int64, made right below
    "as tensors": {"data": torch.as_tensor(of_form().data), "targets": torch.arange(6) % 3},
    "targets of uint16": {"targets": np.array([0, 1, 2, 0, 1, 2], np.uint16)},
    "targets of the other byte order": {"targets": np.array([0, 1, 2, 0, 1, 2], ">i8")},
    "read-only": {"data": np.frombuffer(of_form().data.tobytes(), np.uint8).reshape(6, 5, 4, 3)},
    "mirrored": {"data": of_form().data[:, :, ::-1]},
    "names as an array": {"classes": np.array(["cat", "dog", "goat"])},
    "names as a tuple": {"classes": ("cat", "dog", "goat")},
    "names of NumPy": {"classes": list(np.unique(["cat", "dog", "goat"]))},
}
RIGHT["as lists"] = {"data": [list(image) for image in of_form().data]}


@pytest.mark.parametrize("changed", RIGHT.values(), ids=RIGHT.keys())
def test_what_stands_for_the_same_is_taken(changed):
    arrays = to_arrays(of_form(**changed))
    expected = of_form(**changed).data
    assert arrays.images.dtype == torch.uint8
    np.testing.assert_array_equal(arrays.images.permute(0, 2, 3, 1).numpy(), np.asarray(expected))
    assert arrays.targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert arrays.targets.dtype == torch.int64
    assert arrays.classes == ("cat", "dog", "goat")
    assert {type(name) for name in arrays.classes} == {str}


def test_grey_images_have_one_channel():
    assert to_arrays(of_form(data=of_form().data[..., 0])).images.shape == (6, 1, 5, 4)


WRONG = {
    "no targets but labels": ({"targets": None, "labels": [0] * 6}, "it has labels: set self.targets = self.labels"),
    "no data": ({"data": None}, "must have the attribute data"),
    "no classes": ({"classes": None}, "must have the attribute classes"),
    "floats in [0, 1]": ({"data": of_form().data / 255}, r"uint8 images in data, got float64 in \[0.*; convert them"),
    "floats as a tensor": (
        {"data": torch.linspace(0.1, 0.9, 360).reshape(6, 5, 4, 3)},
        r"uint8 images in data, got float32 in \[0\.",
    ),
    "bools": ({"data": of_form().data > 99}, "uint8 images in data, got bool;"),
    "bools as a tensor": ({"data": torch.ones(6, 5, 4, 3, dtype=torch.bool)}, "uint8 images in data, got bool;"),
    "int64": ({"data": of_form().data.astype(np.int64)}, r"got int64 in \[\d+, \d+\]"),
    "several sizes": ({"data": [np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)] * 3}, "of one shape"),
    "channels first": ({"data": np.zeros((6, 3, 32, 32), np.uint8)}, r"got \(N, C, H, W\) = .*transpose"),
    "one image": ({"data": np.zeros((5, 4), np.uint8)}, r"must have at least one image of .*got \(5, 4\)"),
    "no images": ({"data": np.zeros((0, 5, 4, 3), np.uint8), "targets": []}, "must have at least one image"),
    "no pixels": ({"data": np.zeros((6, 0, 4, 3), np.uint8)}, "must have at least one image"),
    "one label too few": ({"targets": [0, 1, 2, 0, 1]}, "got 5 for 6 images"),
    "fractions": ({"targets": [0.0, 0.5, 1.0, 0.0, 1.0, 2.0]}, r"got float64 in \[0, 2\], such as"),
    "texts": ({"targets": ["cat"] * 6}, "such as .*cat"),
    "targets of a graph": ({"targets": torch.zeros(6, requires_grad=True)}, "one per image: Can't call numpy"),
    "bool targets": ({"targets": [True, False] * 3}, "got bool"),
    "one-hot": ({"targets": np.eye(3, dtype=np.int64)[[0, 1, 2, 0, 1, 2]]}, r"argmax\(1\)"),
    "from 1": ({"targets": [1, 2, 3, 1, 2, 3]}, "got 1 to 3 for 3 classes; if they count from 1, subtract 1"),
    "negative": ({"targets": [-1, 0, 1, 0, 1, 2]}, "got -1 to 2 for 3 classes"),
    "too large for int64": ({"targets": np.array([2**64 - 1] * 6, np.uint64)}, "for 3 classes"),
    "names as numbers": ({"classes": [0, 1, 2]}, r"texts in classes, got 0: write str\(name\)"),
    "names in one text": ({"classes": "abc"}, "a list of names in classes, got 'abc'"),
    "names as a dictionary": ({"classes": {"cat": 0, "dog": 1, "goat": 2}}, "a list of names in classes, got {"),
    "a name twice": ({"classes": ["cat", "dog", "cat"]}, "each name once in classes, got more than once: cat"),
    "no names": ({"classes": []}, "must have 1 to 10,000 names in classes, got 0"),
    "a name not in UTF-8": ({"classes": ["cat", "dog", "go\udcff"]}, r"UTF-8 can write, got 'go\\udcff'"),
    "names too long": ({"classes": ["a" * 400_000, "b" * 400_000, "c" * 400_000]}, "1,000,000 bytes .* got 1,200,000"),
}


@pytest.mark.parametrize(("changed", "message"), WRONG.values(), ids=WRONG.keys())
def test_one_thing_wrong_is_named(changed, message):
    with pytest.raises(ValueError, match=message) as caught:
        to_arrays(of_form(**changed))
    assert str(caught.value).startswith("dataset must have ")
    assert "\n" not in str(caught.value)


ANYTHING = st.one_of(
    st.none(),
    st.integers(-3, 300),
    st.floats(),
    st.booleans(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(st.one_of(st.integers(-1, 3), st.floats(), st.text(max_size=2), st.none()), max_size=7),
    st.lists(st.lists(st.integers(0, 1), max_size=2), max_size=6),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sampled_from(
        [np.zeros(shape, dtype) for shape in ((6,), (6, 3), (6, 5, 4, 3)) for dtype in ("f2", "i1", "M8[s]")]
    ),
    st.sampled_from([torch.zeros(6), torch.zeros(6, 5, 4, 3, dtype=torch.bfloat16), torch.zeros(()), object(), len]),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(name=st.sampled_from(["data", "targets", "classes"]), value=ANYTHING)
def test_whatever_stands_there_is_taken_or_refused(name, value):
    dataset = of_form()
    setattr(dataset, name, value)
    refused = None
    try:
        arrays = to_arrays(dataset)
    except ValueError as error:
        refused = str(error)
    if refused is None:
        assert arrays.images.shape == (6, 3, 5, 4)
        assert len(arrays.targets) == 6
    else:
        assert refused.startswith("dataset must have ")


# The two splits together


class Own:
    """A data set of one's own, whose splits are made by hand."""

    splits: dict[bool, SimpleNamespace]

    def __new__(cls, root=None, train=True, download=False):
        return cls.splits[train]


@pytest.fixture
def module(monkeypatch):
    def build(*, train=None, test=None, **arguments) -> ImageDataModule:
        monkeypatch.setattr(Own, "splits", {True: of_form(**train or {}), False: of_form(**test or {})}, raising=False)
        return ImageDataModule(name="own", dataset=Own, root=None, **arguments)

    return build


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ({"classes": ["dog", "cat", "goat"]}, "got cat, dog, goat in training and dog, cat, goat in test"),
        ({"data": np.zeros((6, 8, 8, 3), np.uint8)}, r"got \(C, H, W\) = \(3, 5, 4\) in training and \(3, 8, 8\)"),
        ({"data": np.zeros((6, 5, 4), np.uint8)}, r"\(1, 5, 4\) in test"),
    ],
)
def test_splits_that_do_not_fit_each_other_are_refused(module, test, message):
    with pytest.raises(ValueError, match=message):
        module(test=test).setup()


@pytest.mark.parametrize("num_val", [-1, 6, 1.0, True, "2"])
def test_a_wrong_number_of_validation_images_is_refused(module, num_val):
    with pytest.raises(ValueError, match=r"must have a whole number in \[0, 6\) in num_val, got"):
        module(train={"num_val": num_val}, val_size=None).setup()


def test_a_stage_reads_what_it_needs_and_no_more(module):
    data = module(batch_size=100)
    data.setup("test")
    assert data.index.keys() == {"test"}
    assert (data.classes, data.image_shape) == (("cat", "dog", "goat"), (3, 5, 4))
    assert data.fingerprint().keys() == {"test"}
    data.setup("validate")
    assert data.index.keys() == {"test", "train", "val"}
    with pytest.raises(ValueError, match="batch_size must be at most the 6 training images, got 100"):
        data.setup("fit")


def test_a_fingerprint_tells_images_targets_and_the_choice_of_validation_images(module):
    def fingerprint(**changed):
        data = module(**{"val_size": 3, "batch_size": 1, **changed})
        data.setup()
        return data.fingerprint()

    same = fingerprint()
    assert fingerprint(batch_size=2, seed=5) == same
    pixels = of_form().data.copy()
    pixels[5, 4, 3, 2] ^= 1
    for changed, differs in (
        ({"train": {"data": pixels}}, {"train"}),
        ({"train": {"data": pixels[..., 0]}, "test": {"data": of_form().data[..., 0]}}, {"train", "test"}),
        ({"train": {"targets": [0, 1, 2, 0, 2, 1]}}, {"train", "val"}),
        ({"test": {"targets": [0, 1, 2, 0, 2, 1]}}, {"test"}),
        ({"split_seed": 1}, {"val"}),
        ({"val_size": 2}, {"val"}),
    ):
        found = fingerprint(**changed)
        assert {name for name in same if found[name] != same[name]} == differs, changed


def test_classes_are_taken_by_name(module):
    data = module(test={"classes": ["goat", "cat", "dog"]})
    data.setup("test")
    data.take_classes(["cat", "dog", "eel", "goat"])
    assert data.classes == ("cat", "dog", "eel", "goat")
    assert data.targets("test").tolist() == [3, 0, 1, 3, 0, 1]
    with pytest.raises(ValueError, match="have the classes cat, which are not among dog, goat, eel"):
        data.take_classes(["dog", "goat", "eel"])
