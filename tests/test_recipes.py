"""What the project promises of its recipes, whole: minutes, and real data where they are on disk. Run with -m slow."""

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
    dataset = real_cifar10[1]  # a class is never taken from a checkpoint
    outcome = command("evaluate.py", f"ckpt={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}", dataset)
    judged = metrics_of(outcome, tmp_path / "run" / "evaluate" / "last")
    for name in ("test/acc", "test/loss", "test/ece", "num_test_images"):
        assert judged[name] == trained[name]


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU wants a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_compiled_network_trains_to_the_same_numbers(command, tmp_path):
    found = []
    for compiled in ("false", "true"):
        folder = tmp_path / compiled
        outcome = command("train.py", "experiment=smoke", f"compile={compiled}", f"output_dir={folder}")
        found.append(metrics_of(outcome, folder))
    assert found[1]["test/loss"] == pytest.approx(found[0]["test/loss"], rel=1e-2)
