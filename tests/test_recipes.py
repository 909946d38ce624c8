"""Whole recipes reach the accuracy that the project promises. Minutes each; some need CIFAR-10. Run with -m slow."""

import json
import shutil

import pytest

pytestmark = pytest.mark.slow


def metrics_of(outcome, folder) -> dict:
    assert outcome.code == 0, outcome.err
    return json.loads((folder / "metrics.json").read_text())


def test_tutorial_recipe_passes_90_percent_on_synthetic_images(command, tmp_path):
    outcome = command("train.py", "data=synthetic", f"output_dir={tmp_path / 'run'}")
    assert metrics_of(outcome, tmp_path / "run")["test/acc"] > 0.9
    assert "generated images, not CIFAR-10" in outcome.out


def test_tutorial_recipe_on_cifar10_and_evaluate_agrees(command, tmp_path, real_cifar10):
    trained = metrics_of(command("train.py", *real_cifar10, f"output_dir={tmp_path / 'run'}"), tmp_path / "run")
    assert trained["steps"] == 25_000
    assert 0.50 < trained["test/acc"] < 0.60
    dataset = real_cifar10[1]  # a checkpoint never names a class
    outcome = command("evaluate.py", f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}", dataset)
    evaluated = metrics_of(outcome, tmp_path / "run" / "evaluate" / "last")
    for name in ("test/acc", "test/loss", "test/ece", "num_test_images"):
        assert evaluated[name] == trained[name]  # on one machine, in fp32 and with equal threads


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # warnings of the compiler
def test_a_compiled_network_trains_to_the_same_numbers(command, tmp_path):
    found = []
    for compiled in ("false", "true"):
        folder = tmp_path / compiled
        recipe = ("experiment=smoke", "trainer.precision=32-true", f"compile={compiled}")
        outcome = command("train.py", *recipe, f"output_dir={folder}")
        found.append(metrics_of(outcome, folder))
    assert found[1]["test/loss"] == pytest.approx(found[0]["test/loss"], rel=1e-2)
