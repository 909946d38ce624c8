import lightning as L
import pytest
import torch
from conftest import make_batches, make_classifier, make_trainer
from torch import nn
from torchvision.transforms.v2.functional import normalize, to_dtype

from cifar_lightning.calibration import fit_temperature
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


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.5]])
def test_the_trainer_does_the_same_steps_as_a_plain_loop(tmp_path, weights):
    classifier, by_hand = make_classifier(label_smoothing=0.1, class_weights=weights), make_classifier()
    make_trainer(tmp_path, max_epochs=2).fit(classifier, make_batches(), make_batches())
    optimizer = torch.optim.SGD(by_hand.net.parameters(), lr=0.01)
    batches = make_batches()
    for epoch in range(2):
        batches.sampler.set_epoch(epoch)
        for images, targets in batches:
            optimizer.zero_grad()
            weight = None if weights is None else torch.tensor(weights)
            nn.functional.cross_entropy(by_hand(images), targets, weight, label_smoothing=0.1).backward()
            optimizer.step()
    for name, value in by_hand.net.state_dict().items():
        torch.testing.assert_close(classifier.net.state_dict()[name], value)
    assert set(classifier.state_dict()) == set(by_hand.state_dict())  # weights of the classes are counted, not kept


def test_the_temperature_is_that_of_the_present_weights(tmp_path):
    classifier = make_classifier()
    trainer = make_trainer(tmp_path, limit_val_batches=None)
    assert classifier.temperature is None
    trainer.fit(classifier, make_batches(), make_batches())
    images, targets = make_batches().arrays.images, make_batches().arrays.targets
    with torch.no_grad():
        assert classifier.temperature == pytest.approx(fit_temperature(classifier(images), targets), rel=1e-5)
    trainer.test(classifier, make_batches(), verbose=False)
    assert classifier.temperature is not None
    classifier.trainer = trainer
    classifier.training_step((images[:4], targets[:4]), 0)
    assert classifier.temperature is None


@pytest.mark.parametrize(("num_images", "is_fitted"), [(9, False), (10, True)])
def test_a_temperature_needs_ten_images(tmp_path, num_images, is_fitted):
    classifier, batches = make_classifier(), make_batches(num_images, batch_size=4)
    make_trainer(tmp_path, limit_val_batches=None).validate(classifier, batches, verbose=False)
    assert (classifier.temperature is not None) is is_fitted


def test_a_classifier_that_is_only_evaluated_keeps_its_temperature(tmp_path):
    classifier = make_classifier(optimizer=None)
    classifier.temperature = 3.0
    make_trainer(tmp_path, limit_val_batches=None).validate(classifier, make_batches(), verbose=False)
    assert classifier.temperature == 3


def test_logits_that_are_not_finite_give_no_temperature(tmp_path):
    classifier = make_classifier()
    classifier.temperature = 3.0
    torch.nn.init.constant_(classifier.net.fc3.bias, -float("inf"))
    make_trainer(tmp_path, limit_val_batches=None).validate(classifier, make_batches(), verbose=False)
    assert classifier.temperature is None


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


def test_test_metrics_are_exact_over_an_unequal_last_batch(tmp_path):
    classifier, batches = make_classifier(label_smoothing=0.5), make_batches(num_images=13, batch_size=5)
    trainer = make_trainer(tmp_path)
    trainer.test(classifier, batches, verbose=False)
    metrics = trainer.callback_metrics
    with torch.no_grad():
        logits = classifier(batches.arrays.images)
    assert metrics["test/acc"] == pytest.approx((logits.argmax(1) == batches.arrays.targets).sum().item() / 13)
    assert metrics["test/loss"] == pytest.approx(
        nn.functional.cross_entropy(logits, batches.arrays.targets).item()
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"std": [0.0]}, r"std must be positive, got \[0\.0\]"),
        ({"mean": [0.5, 0.5]}, "mean and std must have one number per channel each"),
        ({"class_weights": [1.0, -1.0]}, r"class_weights must be at least 0, got \[1\.0, -1\.0\]"),
        ({"label_smoothing": 1.5}, r"label_smoothing must be in \[0, 1\], got 1\.5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_classifier(**arguments)
