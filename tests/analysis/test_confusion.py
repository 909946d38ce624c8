"""Figures of each class, against scikit-learn and by hand."""

import math

import numpy as np
import pytest
import torch

from cifar_lightning.analysis.confusion import most_confused, per_class, taken_for
from cifar_lightning.metrics import evaluate

sklearn = pytest.importorskip("sklearn.metrics")


@pytest.mark.parametrize("num_classes", [2, 7])
def test_figures_of_each_class_are_those_of_scikit_learn(num_classes):
    generator = torch.Generator().manual_seed(num_classes)
    targets = torch.randint(num_classes - 1, (300,), generator=generator)  # none is of the last class
    logits = torch.randn(300, num_classes, generator=generator) + torch.nn.functional.one_hot(targets, num_classes)
    logits[:, 0] -= 100  # nothing is predicted as the first
    evaluation = evaluate(logits, targets)
    figures = per_class(evaluation.confusion)
    expected = sklearn.precision_recall_fscore_support(
        targets, evaluation.preds, labels=range(num_classes), zero_division=np.nan
    )
    for found, reference in zip((figures.precision, figures.recall, figures.f1), expected, strict=False):
        np.testing.assert_allclose(found, reference, rtol=1e-12)
    assert figures.num_images.tolist() == expected[3].tolist()
    assert figures.num_predicted.tolist() == evaluation.preds.bincount(minlength=num_classes).tolist()
    np.testing.assert_equal(figures.recall.tolist(), evaluation.class_acc)


def test_what_is_not_defined_is_nan():
    figures = per_class(torch.tensor([[2, 0, 0], [1, 0, 0], [0, 0, 0]]))
    np.testing.assert_equal(figures.precision.tolist(), [2 / 3, math.nan, math.nan])
    np.testing.assert_equal(figures.recall.tolist(), [1, 0, math.nan])
    np.testing.assert_equal(figures.f1.tolist(), [0.8, 0, math.nan])


def test_the_most_confused_pairs_come_first():
    confusion = torch.tensor([[9, 1, 3], [3, 5, 0], [0, 2, 7]])
    pairs = [(0, 2, 3), (1, 0, 3), (2, 1, 2), (0, 1, 1)]  # of as many images, in the order of the classes
    assert most_confused(confusion, 10) == pairs
    assert most_confused(confusion, 2) == pairs[:2]
    assert most_confused(torch.eye(3, dtype=torch.int64), 10) == []


def test_each_class_with_mistakes_is_taken_for_another():
    confusion = torch.tensor([[9, 1, 3, 0], [3, 5, 0, 0], [0, 0, 7, 0], [0, 0, 0, 0]])
    assert taken_for(confusion) == {0: (2, 3), 1: (0, 3)}
