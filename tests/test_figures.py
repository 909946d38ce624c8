import numpy as np
import pytest
import torch

from cifar_lightning.figures import confusion_matrix, image_grid, prediction_grid, to_pixels


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


def test_grey_images(images):
    figure = image_grid(images[:2, :1], ["a", "b"])
    assert pictured(figure)[0].shape == (8, 8)
    assert to_pixels(figure).ndim == 3


def test_wrong_predictions_name_both_classes_and_stand_out(images):
    targets, preds = torch.tensor([0, 1]), torch.tensor([0, 2])
    confidence = torch.tensor([0.9, 0.4])
    figure = prediction_grid(images[:2], targets, preds, ["cat", "dog", "ship"], confidence=confidence)
    right, wrong = (axis.title for axis in figure.axes[:2])
    assert right.get_text() == "cat\n90%"
    assert wrong.get_text() == "✗ ship 40%\nis dog"
    assert right.get_color() != wrong.get_color()


def test_confusion_matrix_shows_percent_of_each_row():
    figure = confusion_matrix(torch.tensor([[3, 1], [0, 0]]), ["cat", "dog"])
    np.testing.assert_array_equal(pictured(figure)[0], [[75, 25], [0, 0]])
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.texts] == ["75.0", "25.0", "0.0", "0.0"]
    assert axis.get_title() == "Accuracy 75.00%"
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("predicted", "true")


def test_many_classes_have_colours_only():
    names = [f"class {i}" for i in range(100)]
    assert len(confusion_matrix(torch.eye(100, dtype=torch.int64), names).axes[0].texts) == 0


def test_pyplot_never_hears_of_a_figure(images):
    import matplotlib.pyplot as plt

    pixels = to_pixels(image_grid(images[:1], ["one"]))
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert plt.get_fignums() == []
