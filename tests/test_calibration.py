import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from cifar_lightning.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, calibrated, fit_temperature, uncalibrated


def draw(num_images=400, num_classes=10, *, scale=1.0, margin=2.0, num_present=None, seed=0):
    """Logits that find their target often, but not always; the best temperature is about scale / margin."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(num_present or num_classes, (num_images,), generator=generator)
    noise = torch.randn(num_images, num_classes, generator=generator)
    return scale * (noise + margin * F.one_hot(targets, num_classes)), targets


def reference(logits, targets):
    """The minimum of the cross entropy against smoothed targets, by scipy."""
    logits, (num_images, num_classes) = logits.double().numpy(), logits.shape
    missed = 0.5 / (num_images + 1)
    wanted = np.full(logits.shape, missed / (num_classes - 1))
    wanted[np.arange(num_images), targets.numpy()] = 1 - missed

    def loss(log_temperature):
        return -(wanted * log_softmax(logits / math.exp(log_temperature), axis=1)).sum(1).mean()

    return math.exp(minimize_scalar(loss, bounds=(-4.6, 4.6), options={"xatol": 1e-9}).x)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.05},
        {"scale": 30.0, "num_images": 50},
        {"num_classes": 2},
        {"num_present": 3},
        {"margin": 6.0, "num_images": 30},
        {"num_classes": 300, "num_images": 3_600},  # more than are looked at at once
    ],
)
def test_the_minimum_of_the_cross_entropy(options):
    logits, targets = draw(**options)
    assert fit_temperature(logits, targets) == pytest.approx(reference(logits, targets), rel=1e-5)


class Logits(ClassifierMixin, BaseEstimator):
    """A classifier whose features are its logits."""

    def fit(self, features, targets):
        self.classes_ = np.unique(targets)
        return self

    def decision_function(self, features):
        return features

    def predict(self, features):
        return self.classes_[features.argmax(1)]


def test_the_probabilities_of_scikit_learn():
    logits, targets = draw(5_000, scale=3.0)
    features = logits.double().numpy()
    estimator = FrozenEstimator(Logits().fit(features, targets.numpy()))
    other = CalibratedClassifierCV(estimator, method="temperature").fit(features, targets.numpy())
    ours = calibrated(logits, fit_temperature(logits, targets)).softmax(1)
    np.testing.assert_allclose(ours.numpy(), other.predict_proba(features), atol=1e-3)


def test_two_classes_by_hand():
    """Of 7 images 5 are right, and each has the logits 3 and 0: the sigmoid of 3 / T is the smoothed share."""
    targets = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    logits = torch.tensor([[3.0, 0.0]]).expand(7, 2)
    share = (5 * 7.5 + 2 * 0.5) / 8 / 7
    assert fit_temperature(logits, targets) == pytest.approx(3 / logit(share), rel=1e-6)


@pytest.mark.parametrize("num_images", [1, 20, 1_000])
def test_images_that_are_all_right_make_no_answer_certain(num_images):
    targets = torch.arange(num_images) % 10
    logits = 0.4 * F.one_hot(targets, 10).float()
    confidence = calibrated(logits, fit_temperature(logits, targets)).softmax(1).max(1).values
    assert confidence.mean().item() == pytest.approx((num_images + 0.5) / (num_images + 1), rel=1e-6)


def test_the_ends_of_the_range():
    targets = torch.arange(200) % 10
    right = F.one_hot(targets, 10).float()
    assert fit_temperature(1e-4 * right, targets) == MIN_TEMPERATURE
    assert fit_temperature(-right, targets) == MAX_TEMPERATURE  # the true class is the least probable
    assert fit_temperature(5 * F.one_hot(torch.full((200,), 3), 10).float(), targets) == MAX_TEMPERATURE
    assert fit_temperature(1e6 * torch.randn(200, 10), targets) == MAX_TEMPERATURE


def test_where_a_temperature_has_no_effect_it_is_one():
    assert fit_temperature(torch.full((5, 3), -7.0), torch.arange(5) % 3) == 1
    assert fit_temperature(torch.randn(5, 1), torch.zeros(5, dtype=torch.int64)) == 1


def test_a_scale_is_taken_back_and_predictions_stay():
    logits, targets = draw()
    temperature = fit_temperature(logits, targets)
    assert fit_temperature(8 * logits, targets) == pytest.approx(8 * temperature, rel=1e-6)
    assert fit_temperature(logits.bfloat16(), targets) == pytest.approx(temperature, rel=0.02)
    found = calibrated(logits, temperature)
    assert torch.equal(found.argmax(1), logits.argmax(1))
    torch.testing.assert_close(uncalibrated(found, temperature), logits)
    assert calibrated(logits, None) is uncalibrated(logits, None) is logits


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(0, 3), [], "at least 1 image, got 0"),
        (torch.zeros(2, 3), [0, 3], r"targets must be in \[0, 3\), got 0 to 3"),
        (torch.zeros(2, 3), [-1, 0], r"targets must be in \[0, 3\), got -1 to 0"),
        (torch.tensor([[0.0, math.inf]]), [0], "logits must be finite"),
    ],
)
def test_what_cannot_be_fitted(logits, targets, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, torch.tensor(targets, dtype=torch.int64))
