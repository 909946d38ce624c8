"""Which checkpoint has which temperature: the one that was fitted on exactly the weights in it, or none."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import BARE, FAST, after_each_save, differences, last
from omegaconf import DictConfig

from cifar_lightning.calibration import fit_temperature
from cifar_lightning.callbacks.saving import RunCheckpoints
from cifar_lightning.checkpoint.format import read
from cifar_lightning.checkpoint.load import load_classifier
from cifar_lightning.commands.train import train
from cifar_lightning.config.build import build
from cifar_lightning.config.resolve import resolve

VAL = (*FAST, *BARE, "data.val_size=20", "data.batch_size=10", "optimizer.lr=0.05")  # four steps an epoch


def fitted(path: Path, config: DictConfig) -> float:
    """The temperature of a checkpoint's weights on the validation images of its run."""
    classifier, _ = load_classifier(path)
    data = build(resolve(config).data, "data")
    data.setup("validate")
    images, targets = zip(*data.eval_batches("val"), strict=True)
    with torch.no_grad():
        return fit_temperature(classifier(torch.cat(images)), torch.cat(targets))


def temperatures(monkeypatch: pytest.MonkeyPatch) -> dict[int, float | None]:
    """Those of last.ckpt by training step, as the run goes on."""
    found: dict[int, float | None] = {}
    after_each_save(
        monkeypatch, lambda trainer, path: found.update({trainer.global_step: read(path).get("temperature")})
    )
    return found


def test_best_and_last_have_each_their_own(compose, tmp_path, monkeypatch):
    config, validated = compose(*VAL, "trainer.max_epochs=3"), RunCheckpoints.on_validation_end

    def keep(self, trainer, pl_module):
        self._best = None  # each validation is the best
        validated(self, trainer, pl_module)
        if not trainer.sanity_checking:
            shutil.copy(tmp_path / "run" / "checkpoints" / "best.ckpt", tmp_path / f"{trainer.global_step}.ckpt")

    monkeypatch.setattr(RunCheckpoints, "on_validation_end", keep)
    metrics = train(config)
    found = {}
    for step in (4, 8, 12):
        path = tmp_path / f"{step}.ckpt"
        found[step] = read(path)["temperature"]
        assert found[step] == pytest.approx(fitted(path, config), rel=1e-6)
    assert len(set(found.values())) == 3
    assert last(tmp_path / "run")["temperature"] == found[12] == metrics["temperature"]


@pytest.mark.parametrize(
    ("overrides", "with_one"),
    [
        ([], [4, 8]),
        (["trainer.val_check_interval=2"], [4, 8]),  # after step 2 it is validated, and not saved
        (["trainer.check_val_every_n_epoch=2"], [8]),
    ],
)
def test_a_checkpoint_of_weights_that_no_validation_has_seen_has_none(compose, monkeypatch, overrides, with_one):
    found = temperatures(monkeypatch)
    train(compose(*VAL, "checkpoint.every_minutes=0", *overrides))
    assert {1, 3, 4, 5, 7, 8} <= set(found)
    assert [step for step, temperature in found.items() if temperature is not None] == with_one


def test_a_validation_after_training_adds_it_to_the_last_checkpoint(compose, tmp_path, monkeypatch):
    config = compose(*VAL, "trainer.check_val_every_n_epoch=2", "trainer.max_epochs=3", "seed=0")
    with monkeypatch.context() as patch:
        after_each_save(patch, lambda trainer, path: shutil.copy(path, tmp_path / "before.ckpt"))
        metrics = train(config)
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert read(tmp_path / "before.ckpt")["temperature"] is None
    assert read(path)["temperature"] == metrics["temperature"] == pytest.approx(fitted(path, config), rel=1e-6)
    assert differences(read(tmp_path / "before.ckpt"), read(path)) == [".temperature"]
    assert sorted(file.name for file in path.parent.iterdir()) == ["best.ckpt", "last.ckpt"]

    # A run that was killed before it was added gets it, and both train on alike.
    runs = {}
    for name, checkpoint in (("killed", tmp_path / "before.ckpt"), ("whole", path)):
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        shutil.copy(checkpoint, folder / "checkpoints" / "last.ckpt")
        options = (*VAL, "trainer.check_val_every_n_epoch=2", "seed=0", f"output_dir={folder}", f"resume={folder}")
        if name == "killed":
            train(compose(*options, "trainer.max_epochs=3"))
            assert differences(last(folder), read(path)) == []
        train(compose(*options, "trainer.max_epochs=4"))
        runs[name] = last(folder)
    assert differences(runs["killed"], runs["whole"]) == []
    assert runs["whole"]["temperature"] not in (None, metrics["temperature"])


def test_without_validation_images_there_is_none(compose, tmp_path, caplog):
    metrics = train(compose(*FAST, *BARE))
    assert metrics["temperature"] is None
    assert last(tmp_path / "run")["temperature"] is None
    assert "temperature" not in caplog.text


def test_fine_tuning_does_not_take_it_along(compose, tmp_path, caplog):
    train(compose(*VAL, "trainer.max_epochs=1", f"output_dir={tmp_path / 'first'}"))
    first = tmp_path / "first" / "checkpoints" / "last.ckpt"
    assert read(first)["temperature"] is not None
    assert "│ temperature " in caplog.text
    train(compose(*FAST, *BARE, "trainer.max_epochs=1", f"init={first}"))
    assert last(tmp_path / "run")["temperature"] is None
