"""Bins of confidence against torchmetrics and by hand; accuracy against coverage against a loop over limits."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from cifar_lightning.analysis.confidence import NUM_BINS, coverage, reliability


def test_bins_by_hand():
    bins = reliability(torch.tensor([0.5, 0.51, 0.95, 1.0, 0.0]), torch.tensor([True, False, True, True, False]))
    assert bins.num_images.tolist() == [1, *[0] * 6, 2, *[0] * 6, 2]
    np.testing.assert_allclose(bins.acc[[0, 7, 14]], [0, 0.5, 1])
    np.testing.assert_allclose(bins.confidence[[0, 7, 14]], [0, 0.505, 0.975], rtol=1e-6)
    assert math.isnan(bins.acc[1])


def test_the_gaps_of_the_bins_are_the_calibration_error():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(500, 4, generator=generator).mul(2).softmax(1)
    targets = torch.randint(4, (500,), generator=generator)
    confidence, preds = probabilities.max(1)
    bins = reliability(confidence, preds == targets)
    gaps = (bins.num_images * (bins.acc - bins.confidence).abs()).nansum() / 500
    expected = multiclass_calibration_error(probabilities, targets, 4, n_bins=NUM_BINS)
    assert gaps.item() == pytest.approx(expected.item(), abs=1e-6)


def test_coverage_equals_a_loop_over_limits():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.randint(20, (200,), generator=generator) / 20  # with many ties
    is_correct = torch.rand(200, generator=generator) < confidence
    curve = coverage(confidence, is_correct)
    for limit, num_kept, acc in zip(curve.limit, curve.num_kept, curve.acc, strict=True):
        kept = confidence >= limit
        assert num_kept == kept.sum()
        assert acc == is_correct[kept].double().mean()
    assert sorted(set(confidence.tolist()), reverse=True) == curve.limit.tolist()
    assert curve.num_kept[-1] == curve.num_images == 200


def test_most_images_are_kept_that_reach_an_accuracy():
    confidence = torch.tensor([0.6, 0.9, 0.8, 0.7, 0.5])
    curve = coverage(confidence, torch.tensor([True, True, False, True, False]))
    assert curve.acc.tolist() == [1, 1 / 2, 2 / 3, 3 / 4, 3 / 5]
    assert [curve.to_reach(acc) for acc in (0.6, 0.61, 0.75, 0.76, 1.0)] == [4, 3, 3, 0, 0]
    assert coverage(confidence, torch.tensor([False] * 5)).to_reach(0.1) is None
