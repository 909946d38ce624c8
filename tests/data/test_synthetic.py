from collections import Counter

import numpy as np
import pytest
import torch
from conftest import DRAW_SYNTHETIC

from cifar_lightning.data.synthetic import SHAPES, Synthetic


@pytest.fixture(scope="module", autouse=True)
def drawn_in_full():
    """Undo conftest's patch, which draws the images once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Synthetic, "__init__", DRAW_SYNTHETIC)
        yield


@pytest.fixture(scope="module")
def splits() -> tuple[Synthetic, Synthetic]:
    return Synthetic(train=True), Synthetic(train=False)


@pytest.mark.parametrize(("train", "num_images"), [(True, 10_000), (False, 2_000)])
def test_images_have_cifar10s_form_and_classes_are_balanced(splits, train, num_images):
    data = splits[not train]
    assert data.data.shape == (num_images, 32, 32, 3)
    assert data.data.dtype == np.uint8
    assert data.classes == list(SHAPES)
    assert Counter(data.targets) == {k: num_images // 10 for k in range(10)}


def test_each_call_gives_the_same_images_and_leaves_global_generators_alone(splits):
    np.random.seed(1)  # noqa: NPY002 - this test is about the global generator
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    again = Synthetic(train=False)
    np.testing.assert_array_equal(again.data, splits[1].data)
    assert again.targets == splits[1].targets
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_no_test_image_is_a_training_image(splits):
    train, test = ({image.tobytes() for image in split.data} for split in splits)
    assert len(train) == 10_000
    assert len(test) == 2_000
    assert not train & test


def test_colour_does_not_depend_on_the_class(splits):
    _, test = splits
    means = test.data.reshape(2_000, -1, 3).mean(1)
    targets = np.array(test.targets)
    per_class = np.stack([means[targets == k].mean(0) for k in range(10)])
    assert np.ptp(per_class, axis=0).max() < means.std(0).min()


@pytest.mark.parametrize("name", list(SHAPES))
def test_shapes_have_an_inside_and_an_outside(name):
    x, y = np.meshgrid(np.linspace(-1.5, 1.5, 61, dtype=np.float32), np.linspace(-1.5, 1.5, 61, dtype=np.float32))
    share = (SHAPES[name](x, y) < 0).mean()
    assert 0.05 < share < 0.5


def test_ring_and_frame_are_hollow_where_disc_and_square_are_not():
    centre = np.zeros((1, 1), np.float32)
    assert all(SHAPES[name](centre, centre) < 0 for name in ("disc", "square", "cross", "triangle"))
    assert all(SHAPES[name](centre, centre) > 0 for name in ("ring", "frame"))
