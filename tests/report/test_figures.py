import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cifar_lightning.report.figures import (
    MAX_GRID,
    confusion_matrix,
    image_grid,
    only_for_show,
    prediction_grid,
    to_pixels,
    to_png,
)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pictured(figure) -> list[np.ndarray]:
    return [image.get_array() for axis in figure.axes for image in axis.get_images()]


def test_grid_shows_each_image_under_its_title(images):
    figure = image_grid(images, [f"title {i}" for i in range(10)], heading="heading")
    np.testing.assert_array_equal(np.stack(pictured(figure)), images.permute(0, 2, 3, 1).numpy())
    assert [text.get_text() for text in figure.axes[0].texts] == [f"title {i}" for i in range(10)]
    left, top = figure.axes[0].texts[9].get_position()
    assert left == figure.axes[0].texts[1].get_position()[0]  # two rows of eight
    assert top > figure.axes[0].texts[1].get_position()[1]
    assert figure.get_suptitle() == "heading"


def test_class_names_may_have_dollar_signs_and_any_script(images):
    names = ["a$b_$c", "猫"]
    targets, confidence = torch.tensor([0, 1]), torch.tensor([0.9, 0.4])
    grid = prediction_grid(images[:2], targets, targets, names, confidence=confidence)
    for figure in (grid, confusion_matrix(torch.eye(2, dtype=torch.int64), names)):
        assert to_pixels(figure).std() > 0
        assert len(to_png(figure)) > 1000


def test_grey_images(images):
    figure = image_grid(images[:2, :1], ["a", "b"])
    assert pictured(figure)[0].shape == (8, 8)
    assert to_pixels(figure).ndim == 3


def test_wrong_predictions_name_both_classes_in_another_colour(images):
    targets, preds = torch.tensor([0, 1]), torch.tensor([0, 2])
    confidence = torch.tensor([0.9, 0.4])
    figure = prediction_grid(images[:2], targets, preds, ["cat", "dog", "ship"], confidence=confidence)
    right, wrong = figure.axes[0].texts
    assert right.get_text() == "cat\n90%"
    assert wrong.get_text() == "✗ ship 40%\nis dog"
    assert right.get_color() != wrong.get_color()


def test_a_pixel_of_an_image_is_4x4_pixels_of_the_figure():
    side = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    drawn = to_pixels(image_grid(side, ["a", "b", "c"]))
    for i, image in enumerate(side.permute(0, 2, 3, 1).numpy()):
        np.testing.assert_array_equal(drawn[40 : 40 + 128, 6 + 140 * i :][:, :128], image.repeat(4, 0).repeat(4, 1))


def test_long_names_do_not_overlap_other_titles():
    images = torch.zeros(16, 3, 8, 8, dtype=torch.uint8)
    names = ["black-crowned_night-heron", "automobile with a long class name"]
    preds = torch.arange(16) % 2
    figure = prediction_grid(images, torch.zeros(16, dtype=torch.int64), preds, names, confidence=torch.ones(16))
    to_pixels(figure)
    titles, pictures = figure.axes[0].texts, figure.axes[0].get_images()
    boxes = [title.get_window_extent() for title in titles]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes[:8]))
    assert boxes[8].y1 < pictures[0].get_window_extent().y0  # no title touches the image above it
    assert boxes[8].y0 > pictures[8].get_window_extent().y1  # nor its own
    assert titles[1].get_text() == "✗ automobile … 100%\nis black-crowned_ni…"


def test_confusion_matrix_shows_percent_of_each_row():
    figure = confusion_matrix(torch.tensor([[3, 1], [0, 0]]), ["cat", "dog"])
    np.testing.assert_array_equal(pictured(figure)[0], [[75, 25], [0, 0]])
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.texts] == ["75.0", "25.0", "0.0", "0.0"]
    assert axis.get_title() == "Accuracy 75.00%"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "true")


def test_numbers_contrast_with_their_cells():
    figure = confusion_matrix(torch.tensor([[9, 1], [6, 4]]), ["cat", "dog"])
    assert [text.get_color() for text in figure.axes[0].texts] == ["black", "white", "black", "white"]


@pytest.mark.parametrize(("num_classes", "num_texts"), [(20, 400), (21, 0)])
def test_many_classes_have_colours_only(num_classes, num_texts):
    names = [f"class {i}" for i in range(num_classes)]
    assert len(confusion_matrix(torch.eye(num_classes, dtype=torch.int64), names).axes[0].texts) == num_texts


def test_pyplot_keeps_no_figure(images):
    import matplotlib.pyplot as plt

    pixels = to_pixels(image_grid(images[:1], ["one"]))
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert plt.get_fignums() == []


HOSTILE = [
    "",
    " ",
    "$",
    "$x^2$ and $\\frac{",
    "\x00\x1b[31m",
    "a\nb\r\nc\u2028d",
    "\ud800",
    "\U0001f431",
    "\u202e",
    "x" * 10_000,
]


@settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", 1)), derandomize=True, deadline=None)
@given(names=st.lists(st.text(), min_size=10, max_size=10))
@example(names=HOSTILE)
@example(names=["猫", "नमस्ते", "العربية", "e" + "\u0301" * 300, "$", "\\", "\\$", "{}", "%", "_"])
def test_any_names_are_drawn(names):
    targets = torch.arange(10)
    preds = torch.cat([targets[:5], targets[5:].roll(1)])
    grid = prediction_grid(
        torch.zeros(10, 3, 4, 4, dtype=torch.uint8), targets, preds, names, confidence=torch.ones(10)
    )
    for figure in (grid, confusion_matrix(torch.eye(10, dtype=torch.int64), names)):
        assert max(to_pixels(figure).shape) < 2000


def test_names_at_the_axes_are_shortened_and_no_mathematics():
    figure = confusion_matrix(torch.eye(2, dtype=torch.int64), ["a$b_$c", "automobile with a long class name"])
    labels = figure.axes[0].get_xticklabels()
    assert [label.get_text() for label in labels] == ["a$b_$c", "automobile with a l…"]
    assert not any(label.get_parse_math() for label in labels)


@pytest.mark.parametrize("num_classes", [1, 3, 21, 100, 101, 300, 301, 1000, 2500])
def test_figures_are_bounded_in_size_and_in_what_they_hold(num_classes):
    figure = confusion_matrix(torch.eye(num_classes, dtype=torch.int64), ["x" * 100] * num_classes)
    assert max(figure.get_size_inches()) * 150 < 2100
    assert max(pictured(figure)[0].shape) <= 300
    assert sum(len(axis.texts) + len(axis.get_yticklabels()) for axis in figure.axes) < 500


@pytest.mark.parametrize("num_classes", [150, 601])
def test_of_many_classes_cells_hold_the_largest_values_and_the_most_confused_are_named(num_classes):
    confusion = 4 * torch.eye(num_classes, dtype=torch.int64)
    confusion[100, 40] = 12
    confusion[0, num_classes - 1] = 1
    names = [f"class {i}" for i in range(num_classes)]
    figure = confusion_matrix(confusion, names)
    per_cell = -(-num_classes // 300)
    cells = pictured(figure)[0]
    assert len(cells) == -(-num_classes // per_cell)
    assert (cells.diagonal()[1:-1] >= 25).all()
    assert (cells[100 // per_cell, 40 // per_cell], cells[0, -1]) == (75, 20)
    assert (cells > 0).sum() == len(cells) + 2
    beside = figure.axes[1]
    named = [label.get_text() for label in beside.get_yticklabels()]
    assert named == ["100 class 100 → 40 class 40", f"0 class 0 → {num_classes - 1} class {num_classes - 1}"]
    assert [text.get_text() for text in beside.texts] == ["12 of 16", "1 of 5"]
    assert to_pixels(figure).shape == (700, 1300, 3)


def test_many_classes_without_a_confusion_or_an_image():
    for confusion in (torch.eye(101, dtype=torch.int64), torch.zeros(101, 101, dtype=torch.int64)):
        assert to_pixels(confusion_matrix(confusion, ["a"] * 101)).std() > 0


def test_a_grid_is_bounded():
    images = torch.zeros(MAX_GRID + 1, 3, 4, 4, dtype=torch.uint8)
    width, height_of_a_row = image_grid(images[:1], [""]).get_size_inches() * 100
    assert max(width, height_of_a_row * MAX_GRID / 8) < 2100
    with pytest.raises(ValueError, match="a grid has at most 96 images, got 97"):
        image_grid(images, [""] * len(images))


def test_a_picture_that_fails_is_one_line(caplog):
    with only_for_show("test.png"):
        raise MemoryError("so\nlarge")
    assert caplog.messages == ["picture   test.png cannot be drawn: MemoryError: so large"]
    with pytest.raises(KeyboardInterrupt, match="stop"), only_for_show("test.png"):
        raise KeyboardInterrupt("stop")
