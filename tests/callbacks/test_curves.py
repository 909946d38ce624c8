"""Sums over training steps, and the clock they are timed by."""

import pytest
from conftest import make_classifier, make_trainer

from cifar_lightning.callbacks.clock import Clock
from cifar_lightning.callbacks.curves import Sums


def test_means_of_sums():
    sums = Sums(6, 3.0, 2, 1.5) + Sums(2, 1.0, 2, 0.5)
    assert sums == Sums(8, 4.0, 4, 2.0)
    assert sums.means() == {"train/loss": 0.5, "train/acc": 0.5, "images_per_second": 4.0}


def test_a_clock_counts_laps(monkeypatch, tmp_path):
    clock, trainer, classifier, now = Clock(), make_trainer(tmp_path), make_classifier(), iter([10.0, 12.5, 13.0])
    monkeypatch.setattr("cifar_lightning.callbacks.clock.time.perf_counter", lambda: next(now))
    clock.on_train_start(trainer, classifier)
    assert (clock.began_at, clock.seconds) == (10.0, 0.0)
    assert (clock.lap(), clock.lap()) == (2.5, 0.5)
    assert clock.seconds == pytest.approx(3.0)


def test_a_clock_resumes_from_its_state():
    clock, resumed = Clock(), Clock()
    clock.seconds, clock.seconds_to = 3.0, {0.9: 1.0, 0.92: None, 0.94: None}
    resumed.load_state_dict(clock.state_dict())
    assert (resumed.seconds, resumed.seconds_to) == (clock.seconds, clock.seconds_to)
