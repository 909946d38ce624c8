"""Pictures into TensorBoard are only for show: the numbers come first, and a failure is a line."""

import json

import pytest
import torch
from conftest import FAST

from cifar_lightning.callbacks.pictures import Pictures
from cifar_lightning.commands.train import train

PLACE = "cifar_lightning.callbacks.pictures"
ONCE = (*FAST, "trainer.max_epochs=1", "trainer.limit_train_batches=2")


@pytest.mark.parametrize("num_images", [0, 97])
def test_the_number_of_images_is_bounded(num_images):
    with pytest.raises(ValueError, match=rf"^num_images must be in \[1, 96\], got {num_images}"):
        Pictures(num_images=num_images)


def test_numbers_are_on_the_disk_and_shown_before_the_test_is_drawn(command, monkeypatch, tmp_path, capsys):
    seen = []

    def draw(*args: object, **options: object) -> None:
        seen.append(json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"])
        seen.append("test/acc" in capsys.readouterr().out)
        seen.append(options["heading"])
        raise MemoryError

    monkeypatch.setattr(f"{PLACE}.prediction_grid", draw)
    assert command("train.py", *ONCE, f"output_dir={tmp_path / 'run'}", tiny=True).code == 0
    assert seen == [2, True, "Confidences are uncalibrated"]


def test_confidences_are_calibrated_where_there_is_a_temperature(compose, monkeypatch):
    grids, classifiers = [], []
    draw_test = Pictures.draw_test

    def draw(*args: object, **options: object) -> None:
        grids.append(options)
        raise MemoryError

    monkeypatch.setattr(f"{PLACE}.prediction_grid", draw)
    monkeypatch.setattr(Pictures, "draw_test", lambda *args: classifiers.append(args[2]) or draw_test(*args))
    metrics = train(compose(*ONCE, "data.val_size=20"))
    logits = classifiers[0].evaluations["test"].logits
    assert grids[0]["heading"] == "Confidences are calibrated"
    torch.testing.assert_close(grids[0]["confidence"], (logits / metrics["temperature"]).softmax(1).max(1).values)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "MemoryError"),
        (ValueError("of matplotlib\nitself"), "ValueError: of matplotlib itself"),
        (OSError(28, "full"), "OSError: [Errno 28] full"),
    ],
)
def test_pictures_that_fail_are_a_line_each(command, monkeypatch, tmp_path, error, told):
    def draw(*args: object, **options: object) -> None:
        raise error

    for name in ("image_grid", "prediction_grid", "confusion_matrix"):
        monkeypatch.setattr(f"{PLACE}.{name}", draw)
    outcome = command("train.py", *ONCE, f"output_dir={tmp_path / 'run'}", tiny=True)
    assert (outcome.code, outcome.err) == (0, "")
    lines = [" ".join(line.split()[1:]) for line in outcome.out.splitlines() if line.startswith("picture ")]
    names = ("train/images", "test/predictions", "test/confusion")
    assert lines == [f"{name} cannot be drawn: {told}" for name in names]
