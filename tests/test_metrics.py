import math

import pytest
import torch
from torch import nn

from cifar_lightning.metrics import RunningMetrics


@pytest.mark.parametrize("num_batches", [1, 63, 64, 65, 200])
def test_running_metrics_equal_sums_over_all_images(num_batches):
    running, generator = RunningMetrics(), torch.Generator().manual_seed(0)
    num_images, loss_sum, num_correct = 0, 0.0, 0
    for batch in range(num_batches):
        size = 3 if batch == num_batches - 1 else 4
        logits, targets = torch.randn(size, 5, generator=generator), torch.randint(5, (size,), generator=generator)
        loss = nn.functional.cross_entropy(logits, targets)
        running.update(loss, logits, targets, step=batch)
        num_images, loss_sum = num_images + size, loss_sum + size * loss.item()
        num_correct += int((logits.argmax(1) == targets).sum())
    taken = running.take()
    assert (taken[0], taken[2]) == (num_images, num_correct)
    assert taken[1] == pytest.approx(loss_sum)
    assert running.take() == (0, 0.0, 0)


@pytest.mark.parametrize("bad", [0, 63, 64, 70, 79])
def test_the_first_loss_that_is_not_finite_is_named(bad):
    running = RunningMetrics()
    for step in range(80):
        update(running, step, loss=math.nan if step >= bad else 1.0)
    assert running.first_not_finite() == bad
    running.take()
    assert running.first_not_finite() is None


@pytest.mark.parametrize("resumed_after", [1, 40, 64, 66])
@pytest.mark.parametrize("bad", [66, 79, None])
def test_that_it_is_after_resuming_too(resumed_after, bad):
    running, resumed = RunningMetrics(), RunningMetrics()
    for step in range(resumed_after):
        update(running, step, loss=1.0)
    resumed.load_state_dict(running.state_dict(), torch.device("cpu"))
    assert resumed.first_not_finite() is None
    for step in range(resumed_after, 80):
        update(resumed, step, loss=math.inf if step == bad else 1.0)
    assert resumed.first_not_finite() == bad


def update(running: RunningMetrics, step: int, *, loss: float) -> None:
    running.update(torch.tensor(loss), torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64), step=step)
