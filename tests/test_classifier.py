import itertools

import lightning as L
import pytest
import torch
from conftest import make_batches, make_classifier, make_trainer
from torch import nn
from torchvision.transforms.v2.functional import normalize, to_dtype

from cifar_lightning.optim.builders import adamw, muon, sgd
from cifar_lightning.optim.schedules import triangular


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.5]), ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])])
def test_forward_is_to_tensor_normalize_net(mean, std):
    classifier = make_classifier(mean=mean, std=std)
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
    pixels = normalize(to_dtype(images, torch.float32, scale=True), (mean * 3)[:3], (std * 3)[:3])
    torch.testing.assert_close(classifier(images), classifier.net(pixels))


def test_normalisation_travels_with_the_weights():
    saved = make_classifier(mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0]).state_dict()
    loaded = make_classifier(mean=[0.0] * 3, std=[1.0] * 3)
    loaded.load_state_dict(saved)
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(loaded(images), make_classifier(mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0])(images))


def test_the_trainer_does_the_same_steps_as_a_plain_loop(tmp_path):
    classifier, by_hand = make_classifier(label_smoothing=0.1), make_classifier()
    make_trainer(tmp_path, max_epochs=2).fit(classifier, make_batches(), make_batches())
    optimizer = torch.optim.SGD(by_hand.net.parameters(), lr=0.01)
    batches = make_batches()
    for epoch in range(2):
        batches.sampler.set_epoch(epoch)
        for images, targets in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(by_hand(images), targets, label_smoothing=0.1).backward()
            optimizer.step()
    for name, value in by_hand.net.state_dict().items():
        torch.testing.assert_close(classifier.net.state_dict()[name], value)


def test_two_runs_are_bitwise_equal(tmp_path):
    runs = []
    for _ in range(2):
        runs.append(make_classifier())
        make_trainer(tmp_path).fit(runs[-1], make_batches(), make_batches())
    assert all(torch.equal(a, b) for a, b in zip(runs[0].parameters(), runs[1].parameters(), strict=True))


def test_schedule_follows_progress_per_step(tmp_path):
    rates = []

    class Record(L.Callback):
        def on_train_batch_start(self, trainer, *args):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    classifier = make_classifier(schedule=triangular(warmup_fraction=0.2))
    make_trainer(tmp_path, max_epochs=2, callbacks=[Record()]).fit(classifier, make_batches(), make_batches())
    assert rates == pytest.approx([0.01 * f for f in (0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8)])


def test_schedule_follows_max_steps_where_set(tmp_path):
    classifier = make_classifier(schedule=lambda progress: progress)
    trainer = make_trainer(tmp_path, max_epochs=-1, max_steps=4)
    trainer.fit(classifier, make_batches(), make_batches())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)  # after the last step


@pytest.mark.parametrize("schedule", [triangular(warmup_fraction=0.0), triangular(end_factor=0.5), None])
def test_a_frozen_part_gets_no_gradients_from_the_next_epoch_on(tmp_path, schedule):
    trained = []

    class Record(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trained.append((trainer.current_epoch, pl_module.net.fc3.weight.requires_grad))
            assert pl_module.net.fc2.weight.requires_grad

    classifier = make_classifier(schedule=schedule, freeze={"fc3": 0.5})
    make_trainer(tmp_path, max_epochs=2, callbacks=[Record()]).fit(classifier, make_batches(), make_batches())
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
        (None, [1] * 10, [1] * 5),
    ],
    ids=["to zero", "to a half", "constant"],
)
def test_a_part_goes_through_the_schedule_early_and_then_rests(tmp_path, optimizer, schedule, factors, early):
    rates, weights = [], []

    class Record(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            groups = trainer.optimizers[0].param_groups
            rates.append((groups[0]["lr"], groups[-1]["lr"]))
            weights.append([p.detach().clone() for p in (*pl_module.net.fc3.parameters(), pl_module.net.fc2.weight)])

    classifier = make_classifier(optimizer=optimizer, schedule=schedule, freeze={"fc3": 0.5})
    make_trainer(tmp_path, max_epochs=2, callbacks=[Record()]).fit(classifier, make_batches(), make_batches())
    assert [rate for rate, _ in rates] == pytest.approx([0.01 * factor for factor in factors])
    assert [rate for _, rate in rates] == pytest.approx([0.01 * factor for factor in early] + [0] * 5)
    for step, (before, after) in enumerate(itertools.pairwise(weights)):
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert moved == ([True, True, True] if step < 5 else [False, False, True])


def test_test_metrics_are_exact_over_an_unequal_last_batch(tmp_path):
    classifier, batches = make_classifier(label_smoothing=0.5), make_batches(num_images=13, batch_size=5)
    trainer = make_trainer(tmp_path)
    trainer.test(classifier, batches, verbose=False)
    metrics = trainer.callback_metrics
    with torch.no_grad():
        logits = classifier(batches.images)
    assert metrics["test/acc"] == pytest.approx((logits.argmax(1) == batches.targets).sum().item() / 13)
    assert metrics["test/loss"] == pytest.approx(
        nn.functional.cross_entropy(logits, batches.targets).item()
    )  # no smoothing
    assert classifier.evaluations["test"].num_images == 13


def test_sanity_check_leaves_no_evaluation(tmp_path):
    seen = []

    class Look(L.Callback):
        def on_sanity_check_end(self, trainer, pl_module):
            seen.append(dict(pl_module.evaluations))

    classifier = make_classifier()
    trainer = make_trainer(tmp_path, callbacks=[Look()], limit_val_batches=None, num_sanity_val_steps=1)
    trainer.fit(classifier, make_batches(), make_batches())
    assert seen == [{}]
    assert classifier.evaluations["val"].num_images == 40
    assert classifier.judged_at == {"val": trainer.global_step}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"std": [0.0]}, r"std must be positive, got \[0\.0\]"),
        ({"mean": [0.5, 0.5]}, "mean and std must have one number per channel each"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\], got 1\.5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_classifier(**arguments)
