"""Parts whose schedule ends early are frozen from the next epoch on."""

import itertools

import lightning as L
import pytest
import torch
from conftest import make_batches, make_classifier, make_trainer

from cifar_lightning.callbacks.freezing import Freezing
from cifar_lightning.optim.builders import adamw, muon, sgd
from cifar_lightning.optim.early_ends import with_early_ends
from cifar_lightning.optim.schedules import constant, triangular


@pytest.mark.parametrize("schedule", [triangular(warmup_fraction=0.0), triangular(end_factor=0.5), constant])
def test_a_frozen_part_gets_no_gradients_from_the_next_epoch_on(tmp_path, schedule):
    trained = []

    class Record(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trained.append((trainer.current_epoch, pl_module.net.fc3.weight.requires_grad))
            assert pl_module.net.fc2.weight.requires_grad

    optimizer = with_early_ends(lambda net: sgd(net, lr=0.01), {"fc3": 0.5})
    classifier = make_classifier(optimizer=optimizer, schedule=schedule)
    make_trainer(tmp_path, max_epochs=2, callbacks=[Freezing(), Record()]).fit(
        classifier, make_batches(), make_batches()
    )
    assert len(trained) == 10
    assert all(requires_grad == (epoch < 1) for epoch, requires_grad in trained)
    assert all(parameter.requires_grad for parameter in classifier.net.parameters())  # for a training after this one


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda net: sgd(net, lr=0.01, momentum=0.9, weight_decay=0.1),
        lambda net: adamw(net, lr=0.01, weight_decay=0.1),
        lambda net: muon(net, lr=0.01, head_lr=0.01, norm_lr=0.01, weight_decay=0.1),
    ],
    ids=["sgd", "adamw", "muon"],
)
@pytest.mark.parametrize(
    ("schedule", "factors", "early"),
    [
        (triangular(warmup_fraction=0.0), [1 - step / 10 for step in range(10)], [1, 0.8, 0.6, 0.4, 0.2]),
        (
            triangular(warmup_fraction=0.0, end_factor=0.5),
            [1 - step / 20 for step in range(10)],
            [1, 0.9, 0.8, 0.7, 0.6],
        ),
        (constant, [1] * 10, [1] * 5),
    ],
    ids=["to zero", "to a half", "constant"],
)
def test_the_schedule_of_a_part_ends_early_and_then_it_is_frozen(tmp_path, optimizer, schedule, factors, early):
    rates, weights = [], []

    class Record(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            groups = trainer.optimizers[0].param_groups
            rates.append((groups[0]["lr"], groups[-1]["lr"]))
            weights.append([p.detach().clone() for p in (*pl_module.net.fc3.parameters(), pl_module.net.fc2.weight)])

    classifier = make_classifier(optimizer=with_early_ends(optimizer, {"fc3": 0.5}), schedule=schedule)
    make_trainer(tmp_path, max_epochs=2, callbacks=[Freezing(), Record()]).fit(
        classifier, make_batches(), make_batches()
    )
    assert [rate for rate, _ in rates] == pytest.approx([0.01 * factor for factor in factors])
    assert [rate for _, rate in rates] == pytest.approx([0.01 * factor for factor in early] + [0] * 5)
    for step, (before, after) in enumerate(itertools.pairwise(weights)):
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert moved == ([True, True, True] if step < 5 else [False, False, True])
