import logging
from unittest import mock

import lightning as L
import pytest
import torch

from cifar_lightning.callbacks import progress
from cifar_lightning.callbacks.curves import TrainingCurves
from cifar_lightning.callbacks.progress import EpochProgress


class Clock:
    """Stands for the module ``time``: an hour is a moment."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def trainer_of(**attributes):
    defaults = {"limit_val_batches": 0, "global_step": 0, "current_epoch": 0, "num_training_batches": 10}
    ends = {"max_epochs": 4, "max_steps": -1, "accumulate_grad_batches": 1, "callbacks": []}
    return mock.Mock(spec=L.Trainer, **{**defaults, **ends, **attributes})


def lines_of_a_run(clock, caplog, trainer, *, seconds_per_batch, num_batches=10, costs=(1.0,)):
    """What is printed from the start until that batch of the first epoch."""
    caplog.set_level(logging.INFO, logger="cifar_lightning")
    table = EpochProgress(mock.Mock(spec=TrainingCurves))
    table.costs = costs
    module = mock.Mock(spec=L.LightningModule, device=torch.device("cpu"))
    table.on_train_start(trainer, module)
    table.on_train_epoch_start(trainer, module)
    for batch in range(num_batches):
        clock.now += seconds_per_batch
        table.on_train_batch_end(trainer, module, None, None, batch)
    return [record.getMessage() for record in caplog.records]


def test_the_end_of_a_long_run_is_told_after_a_fifth_of_an_epoch(clock, caplog):
    lines = lines_of_a_run(clock, caplog, trainer_of(), seconds_per_batch=60, num_batches=2)
    # the first step is not counted: 38 batches of a minute are left
    assert lines[-1].startswith("time      about 38 min 00 s more on this device, until ")
    assert lines[-1].endswith("; a GPU takes a fraction of it (trainer.accelerator=gpu)")


def test_it_is_told_once(clock, caplog):
    lines = lines_of_a_run(clock, caplog, trainer_of(), seconds_per_batch=60)
    assert sum(line.startswith("time") for line in lines) == 1


def test_a_short_run_says_nothing_of_its_end(clock, caplog):
    assert len(lines_of_a_run(clock, caplog, trainer_of(), seconds_per_batch=1)) == 1


@pytest.mark.parametrize(
    ("attributes", "costs", "expected"),
    [
        ({}, (1, 3), "1 h 38 min"),  # 8 batches, and three epochs that cost three times as much
        ({"max_steps": 15}, (1,), "13 min 00 s"),
        ({"max_steps": 15, "accumulate_grad_batches": 2}, (1,), "28 min 00 s"),
        ({"max_epochs": -1, "max_steps": 20}, (1,), "18 min 00 s"),
    ],
)
def test_what_is_left_counts_epochs_by_their_cost(clock, caplog, attributes, costs, expected):
    attributes = {"num_training_batches": 10, **attributes}
    lines = lines_of_a_run(clock, caplog, trainer_of(**attributes), seconds_per_batch=60, num_batches=2, costs=costs)
    assert lines[-1].startswith(f"time      about {expected} more on this device")


def test_a_run_without_an_end_tells_none(clock, caplog):
    endless = trainer_of(max_epochs=-1)
    assert len(lines_of_a_run(clock, caplog, endless, seconds_per_batch=3600)) == 1
