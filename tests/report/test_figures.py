import itertools

import numpy as np
import pytest
import torch

from cifar_lightning.report.figures import confusion_matrix, image_grid, prediction_grid, save, to_pixels


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def pictured(figure) -> list[np.ndarray]:
    return [axis.get_images()[0].get_array() for axis in figure.axes if axis.get_images()]


def test_grid_shows_each_image_under_its_title(images):
    figure = image_grid(images, [f"title {i}" for i in range(10)], heading="heading")
    np.testing.assert_array_equal(np.stack(pictured(figure)), images.permute(0, 2, 3, 1).numpy())
    assert [axis.get_title() for axis in figure.axes if axis.get_images()] == [f"title {i}" for i in range(10)]
    assert len(figure.axes) == 16  # two rows of eight
    assert figure.get_suptitle() == "heading"


def test_class_names_may_have_dollar_signs_and_any_script(images, tmp_path):
    names = ["a$b_$c", "猫"]
    targets, confidence = torch.tensor([0, 1]), torch.tensor([0.9, 0.4])
    grid = prediction_grid(images[:2], targets, targets, names, confidence=confidence)
    for figure in (grid, confusion_matrix(torch.eye(2, dtype=torch.int64), names)):
        assert to_pixels(figure).std() > 0
        save(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_grey_images(images):
    figure = image_grid(images[:2, :1], ["a", "b"])
    assert pictured(figure)[0].shape == (8, 8)
    assert to_pixels(figure).ndim == 3


def test_wrong_predictions_name_both_classes_in_another_colour(images):
    targets, preds = torch.tensor([0, 1]), torch.tensor([0, 2])
    confidence = torch.tensor([0.9, 0.4])
    figure = prediction_grid(images[:2], targets, preds, ["cat", "dog", "ship"], confidence=confidence)
    right, wrong = (axis.title for axis in figure.axes[:2])
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
    boxes = [axis.title.get_window_extent() for axis in figure.axes]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes[:8]))
    assert boxes[8].y1 < figure.axes[0].get_window_extent().y0  # no title touches the image above it
    assert figure.axes[1].get_title() == "✗ automobile … 100%\nis black-crowned_ni…"


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
