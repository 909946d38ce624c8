"""Numbers stay finite: a run stops at the first bad loss, and nothing bad is ever saved or best."""

import math

import pytest
import torch
from conftest import SMALL, last

from cifar_lightning.callbacks.finite import FiniteWatch
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.commands.train import train
from cifar_lightning.errors import RunError
from cifar_lightning.metrics import Evaluation


@pytest.fixture
def bad_from(monkeypatch):
    """Make the loss bad from a step on."""

    def bad(value: float, *, step: int) -> None:
        def forward(self, images):
            logits = original(self, images)
            return logits * value if self.training and self.trainer.global_step >= step else logits

        original = ImageClassifier.forward
        monkeypatch.setattr(ImageClassifier, "forward", forward)

    return bad


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_training_stops_at_the_step(value, command, tmp_path, bad_from):
    bad_from(value, step=8)
    outcome = command("train.py", *SMALL, "schedule=linear", f"output_dir={tmp_path / 'run'}", tiny=True)
    assert outcome.code == 1
    assert outcome.err == (
        "error: the loss of step 8 (epoch 1, both from 0) is not finite, at a learning rate of 0.000333333: try a "
        "lower optimizer.lr, trainer.gradient_clip_val=1 or trainer.precision=32-true\n"
    )
    assert last(tmp_path / "run")["global_step"] == 6
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("overrides", "saved"),
    [
        (["trainer.log_every_n_steps=3"], 6),  # read at the log point after step 9
        (["trainer.log_every_n_steps=0"], 6),  # at the epoch's end
        (["trainer.log_every_n_steps=0", "checkpoint.every_minutes=0"], 8),  # before the checkpoint after step 9
    ],
)
def test_a_device_is_not_waited_for_and_the_step_still_named(
    overrides, saved, compose, tmp_path, bad_from, monkeypatch
):
    monkeypatch.setattr(FiniteWatch, "on_before_backward", lambda *_: None)  # which does nothing on a GPU
    bad_from(math.nan, step=8)
    with pytest.raises(RunError, match=r"the loss of step 8 \(epoch 1, both from 0\) is not finite"):
        train(compose(*SMALL, *overrides))
    assert last(tmp_path / "run")["global_step"] == saved


def test_a_bad_metric_is_never_the_best(compose, tmp_path, monkeypatch):
    evaluated = []

    def evaluate(logits, targets):
        evaluated.append(original(logits, targets))
        better = Evaluation(**{**vars(evaluated[-1]), "acc": 0.1 * len(evaluated)})
        return Evaluation(**{**vars(better), "loss": math.nan}) if len(evaluated) == 2 else better

    import cifar_lightning.classifier as module

    original = module.evaluate
    monkeypatch.setattr(module, "evaluate", evaluate)
    train(compose(*SMALL, "data.val_size=20", "trainer.max_epochs=2", "trainer.num_sanity_val_steps=0"))
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 4
    assert last(tmp_path / "run")["global_step"] == 8
