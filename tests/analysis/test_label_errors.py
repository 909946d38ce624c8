"""Labels that may be wrong: exactly those that cleanlab finds, in its order."""

import numpy as np
import pytest
import torch

from cifar_lightning.analysis.label_errors import label_errors

count = pytest.importorskip("cleanlab.count")
filter_ = pytest.importorskip("cleanlab.filter")
rank = pytest.importorskip("cleanlab.rank")


def noisy(num_images: int, num_classes: int, *, scale: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities of a network that is right most often, and labels of which a tenth are wrong."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(num_classes, (num_images,), generator=generator)
    logits = torch.randn(num_images, num_classes, generator=generator) + 2 * torch.eye(num_classes)[targets]
    is_wrong = torch.rand(num_images, generator=generator) < 0.1
    targets[is_wrong] = torch.randint(num_classes, (int(is_wrong.sum()),), generator=generator)
    return (scale * logits.double()).softmax(1), targets


@pytest.mark.parametrize(
    ("num_images", "num_classes", "scale"), [(500, 2, 1.0), (1000, 10, 0.5), (1000, 10, 5.0), (3000, 100, 2.0)]
)
def test_suspected_labels_are_those_of_cleanlab(num_images, num_classes, scale):
    probabilities, targets = noisy(num_images, num_classes, scale=scale, seed=num_classes)
    found = label_errors(probabilities, targets)
    labels, probs = targets.numpy(), probabilities.numpy()
    np.testing.assert_allclose(found.thresholds, count.get_confident_thresholds(labels, probs), rtol=1e-12)
    np.testing.assert_allclose(found.quality, rank.get_normalized_margin_for_each_label(labels, probs), atol=1e-12)
    expected = filter_.find_label_issues(
        labels, probs, filter_by="confident_learning", return_indices_ranked_by="normalized_margin", n_jobs=1
    )
    assert len(expected) > 10
    assert found.index.tolist() == expected.tolist()


def test_the_classes_suggested_are_those_of_the_confident_joint():
    probabilities, targets = noisy(1000, 10, scale=5.0, seed=0)
    found = label_errors(probabilities, targets)
    labels, probs = targets.numpy(), probabilities.numpy()
    joint, off_diagonal = count.compute_confident_joint(
        labels, probs, calibrate=False, return_indices_of_off_diagonals=True
    )
    assert set(found.index.tolist()) <= set(off_diagonal.tolist())
    pairs = torch.zeros(10, 10, dtype=torch.int64)
    pairs.index_put_((targets[found.index], found.suggested), torch.tensor(1), accumulate=True)
    np.fill_diagonal(joint, 0)
    assert (pairs.numpy() <= joint).all()
    assert joint.sum() - pairs.sum() == len(off_diagonal) - len(found.index)


def test_by_hand():
    probabilities = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.75, 0.25]], dtype=torch.float64)
    found = label_errors(probabilities, torch.tensor([0, 0, 1, 0, 1]))
    assert found.thresholds.tolist() == pytest.approx([(0.9 + 0.8 + 0.2) / 3, (0.9 + 0.25) / 2])
    assert found.index.tolist() == [3, 4]  # both are confidently of the other class
    assert found.suggested.tolist() == [1, 0]
    assert found.quality.tolist() == pytest.approx([0.9, 0.8, 0.9, 0.2, 0.25])


def test_a_class_without_images_is_never_suggested():
    probabilities = torch.tensor([[0.3, 0.1, 0.6], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]], dtype=torch.float64)
    found = label_errors(probabilities, torch.tensor([0, 1, 1]))
    assert found.thresholds[2] == torch.inf
    assert 2 not in found.suggested.tolist()


def test_a_single_class_has_no_errors():
    found = label_errors(torch.ones(4, 1), torch.zeros(4, dtype=torch.int64))
    assert (len(found.index), found.quality.tolist()) == (0, [1.0] * 4)
