"""Parts whose schedule ends early are frozen from the next epoch on; a trunk is frozen while the head is trained."""

import itertools

import lightning as L
import pytest
import torch
from conftest import make_batches, make_classifier, make_trainer

from cifar_lightning import models
from cifar_lightning.callbacks.finite import FiniteWatch
from cifar_lightning.callbacks.freezing import Freezing, TrunkFreezing
from cifar_lightning.callbacks.lookahead import Lookahead
from cifar_lightning.optim.builders import adamw, muon, sgd, sgd_by_kind
from cifar_lightning.optim.freeze import with_early_ends, with_trunk_apart
from cifar_lightning.optim.schedules import constant, finetune, triangular


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


any_optimizer = pytest.mark.parametrize(
    "optimizer",
    [
        lambda net: sgd(net, lr=0.01, momentum=0.9, weight_decay=0.1),
        lambda net: adamw(net, lr=0.01, weight_decay=0.1),
        lambda net: muon(net, lr=0.01, head_lr=0.01, norm_lr=0.01, weight_decay=0.1),
        lambda net: sgd_by_kind(net, lr=0.01, norm_lr=0.01, weight_decay=0.1),
    ],
    ids=["sgd", "adamw", "muon", "sgd_by_kind"],
)


@any_optimizer
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


SPEEDRUN = {"name": "speedrun", "num_classes": 10, "in_channels": 3, "widths": [8, 8, 8]}
"""A network with batch norms, and with parameters that are never trained."""


@any_optimizer
def test_the_trunk_is_bitwise_unchanged_until_its_step(tmp_path, optimizer):
    states, modes = [], []

    class Record(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            states.append({name: value.clone() for name, value in pl_module.net.state_dict().items()})
            modes.append((trainer.global_step, pl_module.net.groups[0].norms[0].training))
            assert pl_module.net.training

    torch.manual_seed(0)
    net = models.build(**SPEEDRUN)
    trainable = [parameter.requires_grad for parameter in net.parameters()]
    head = models.head_of(**SPEEDRUN)
    classifier = make_classifier(optimizer=with_trunk_apart(optimizer, head), schedule=finetune(head_fraction=0.5))
    classifier.net = net
    callbacks = [TrunkFreezing(0.5, head), FiniteWatch(), Lookahead(every=1), Record()]
    trainer = make_trainer(
        tmp_path, max_epochs=4, callbacks=callbacks, limit_val_batches=1, val_check_interval=2, gradient_clip_val=1.0
    )
    trainer.accumulate_grad_batches = 2  # 5 batches, 3 steps in each of 4 epochs
    trainer.fit(classifier, make_batches(), make_batches())
    assert [mode for mode in modes if mode[0] in (5, 6)] == [(5, False), (6, True), (6, True)]
    assert all(in_training == (step >= 6) for step, in_training in modes)
    assert list(net.state_dict()) == list(states[0])
    last_frozen, final = states[[step for step, _ in modes].index(6)], net.state_dict()
    fixed = {"patches.weight", *(name for name in final if ".norms." in name and name.endswith(".weight"))}
    for name, first in states[0].items():
        assert torch.equal(first, last_frozen[name]) == (name not in head), name
        assert torch.equal(first, final[name]) == (name in fixed), name
    assert [parameter.requires_grad for parameter in net.parameters()] == trainable


def test_a_share_that_is_never_reached_thaws_the_trunk_at_the_end(tmp_path):
    classifier = make_classifier()
    before = classifier.net.conv1.weight.clone()
    make_trainer(tmp_path, callbacks=[TrunkFreezing(0.99, {"fc3.weight", "fc3.bias"})]).fit(
        classifier, make_batches(), make_batches()
    )
    assert torch.equal(classifier.net.conv1.weight, before)
    assert all(parameter.requires_grad for parameter in classifier.net.parameters())


def test_the_rate_falls_where_the_trunk_is_thawed():
    factor = finetune(head_fraction=0.5, warmup_fraction=0.1, trunk_factor=0.2)
    found = [factor(step / 20) for step in range(21)]
    assert found[:10] == pytest.approx([0, 0.5] + [1] * 8)
    assert found[10] == pytest.approx(0.2)
    assert found[15] == pytest.approx(0.1)
    assert found[20] == 0
    assert found[10:] == sorted(found[10:], reverse=True)
    without = finetune(head_fraction=0, warmup_fraction=0.5, trunk_factor=0.2)
    assert [without(p) for p in (0.25, 0.5)] == pytest.approx([0.5 * 0.2 * (1 + 0.5**0.5) / 2, 0.1])


@pytest.mark.parametrize("arguments", [{"head_fraction": 1}, {"warmup_fraction": -0.1}, {"trunk_factor": 1.5}])
def test_a_schedule_out_of_its_range_is_refused(arguments):
    with pytest.raises(ValueError, match=rf"{next(iter(arguments))} must be in \[0, 1"):
        finetune(**arguments)
