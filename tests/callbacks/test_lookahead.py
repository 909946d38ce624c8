import re

import lightning as L
import pytest
import torch
from conftest import make_batches, make_trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from cifar_lightning.callbacks.lookahead import Lookahead
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.config.build import build
from cifar_lightning.config.resolve import plain
from cifar_lightning.optim.builders import sgd


class Net(nn.Module):
    """A small network with a batch norm, whose statistics are part of the average."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(images)).relu().amax((2, 3)))


def make_classifier(**arguments) -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(Net(), mean=[0.5], std=[0.5], optimizer=lambda net: sgd(net, lr=0.1), **arguments)


def fit(tmp_path, *callbacks: L.Callback, **arguments) -> ImageClassifier:
    classifier = make_classifier()
    options = {"precision": "32-true"} | arguments  # so that runs are equal bit for bit on every CPU
    make_trainer(tmp_path, callbacks=list(callbacks), **options).fit(classifier, make_batches(), make_batches())
    return classifier


def floats(module: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in module.state_dict().items() if value.is_floating_point()}


def by_hand(num_epochs: int, *, every: int, decay: float, power: float) -> dict[str, Tensor]:
    """Train with the paper's algorithm, five steps per epoch, and return the average."""
    fast, batches = make_classifier(), make_batches()
    optimizer = torch.optim.SGD(fast.net.parameters(), lr=0.1)
    slow = {name: value.clone() for name, value in floats(fast).items()}
    step = 0
    for epoch in range(num_epochs):
        batches.sampler.set_epoch(epoch)
        for images, targets in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(fast(images), targets).backward()
            optimizer.step()
            step += 1
            if step % every == 0:
                share = decay**every * (step / (5 * num_epochs)) ** power
                slow = {name: share * slow[name] + (1 - share) * value for name, value in floats(fast).items()}
                fast.load_state_dict(slow, strict=False)
    return slow


# 10 is not a multiple of 3: the last step is in no average and has no effect.
@pytest.mark.parametrize(("every", "decay", "power"), [(1, 0.9, 3.0), (3, 0.9, 3.0), (2, 0.5, 0.0)])
def test_it_equals_the_papers_algorithm(tmp_path, every, decay, power):
    classifier = fit(tmp_path, Lookahead(every=every, decay=decay, power=power), max_epochs=2)
    expected = by_hand(2, every=every, decay=decay, power=power)
    assert floats(classifier).keys() == expected.keys() >= {"net.conv.weight", "net.norm.running_var"}
    for name, value in expected.items():
        torch.testing.assert_close(floats(classifier)[name], value)


def test_with_decay_zero_nothing_changes(tmp_path):
    plain_run, averaged = fit(tmp_path), fit(tmp_path, Lookahead(every=1, decay=0.0))
    assert all(torch.equal(value, floats(plain_run)[name]) for name, value in floats(averaged).items())


def test_accumulated_gradients_make_one_step(tmp_path):
    averaged = fit(tmp_path, Lookahead(every=1, decay=0.5), accumulate_grad_batches=5)
    # There is one step, at which the average keeps half of the first weights.
    start, end = floats(make_classifier()), floats(fit(tmp_path, accumulate_grad_batches=5))
    for name, value in floats(averaged).items():
        torch.testing.assert_close(value, (start[name] + end[name]) / 2)


def test_a_resumed_run_is_the_same_run(tmp_path):
    options = {"max_epochs": 2, "max_steps": 10, "precision": "32-true"}
    whole = fit(tmp_path, Lookahead(every=3), **options)

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 5:  # two steps after the last update of the average
                trainer.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)
                trainer.should_stop = True

    fit(tmp_path, Lookahead(every=3), Stop(), **options)
    for averaged, equal in [(Lookahead(every=3), True), (Lookahead(every=3, decay=0.9), False)]:
        resumed = make_classifier()
        trainer = make_trainer(tmp_path, callbacks=[averaged], **options)
        trainer.fit(resumed, make_batches(), make_batches(), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
        assert trainer.global_step == 10
        assert all(torch.equal(value, floats(whole)[name]) for name, value in floats(resumed).items()) == equal


def test_a_callback_that_is_used_again_starts_anew(tmp_path):
    averaged = Lookahead(every=2)
    first, second = fit(tmp_path, averaged), fit(tmp_path, averaged)
    assert all(torch.equal(value, floats(first)[name]) for name, value in floats(second).items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"decay": 1.0}, "decay must be in [0, 1), got 1.0"),
        ({"decay": -0.1}, "decay must be in [0, 1), got -0.1"),
        ({"power": -1.0}, "power must be at least 0, got -1.0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Lookahead(**arguments)


def test_a_training_without_a_planned_last_step_is_refused(tmp_path):
    with pytest.raises(
        MisconfigurationException,
        match=r"^Lookahead needs a planned last step; set trainer\.max_epochs or trainer\.max_steps$",
    ):
        fit(tmp_path, Lookahead(), max_epochs=-1, max_time={"seconds": 1})


def test_conf_lookahead_adds_it_to_the_usual_callbacks_with_the_published_constants(compose):
    node = plain(compose("callbacks=lookahead"))["callbacks"]
    assert node.keys() == plain(compose())["callbacks"].keys() | {"lookahead"}
    averaged = build(node["lookahead"], "callbacks.lookahead")
    assert isinstance(averaged, Lookahead)
    assert (averaged.every, averaged.decay, averaged.power) == (5, 0.95, 3.0)
