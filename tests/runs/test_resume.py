"""A run that is killed anywhere and resumed ends bit for bit as the one that was not."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import after_each_save, differences, last
from torch import nn

from cifar_lightning import models
from cifar_lightning.callbacks.saving import RunCheckpoints
from cifar_lightning.commands.train import train
from cifar_lightning.data.batches import Batches

QUIET = ("logger=none", "trainer.enable_progress_bar=false", "num_threads=1")


class Dropout(nn.Module):
    """A small network with dropout and batch norm."""

    def __init__(self, *, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 5, stride=3)
        self.rest = nn.Sequential(
            nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(800, num_classes)
        )

    def forward(self, images):
        return self.rest(self.conv1(images))


@pytest.fixture(autouse=True)
def dropout(monkeypatch):
    monkeypatch.setitem(models.NETWORKS, "dropout", Dropout)


RECIPES = {
    "val, augmentation, dropout, schedule": [
        *("data.val_size=20", "data.batch_size=15", "trainer.max_epochs=3", "model.name=dropout", "augment=crop_flip"),
        *("schedule=linear", "freeze=[[conv1,0.5]]", "callbacks=lookahead", "callbacks.pictures=null"),
        *("callbacks.lookahead.every=2",),
    ],
    "bf16, clipping, accumulation": [
        *("data.batch_size=8", "trainer.max_epochs=2", "trainer.precision=bf16-mixed", "model.name=dropout"),
        *(
            "trainer.accumulate_grad_batches=3",
            "trainer.gradient_clip_val=0.1",
            "callbacks=none",
            "optimizer=nesterov",
            "schedule=cosine",
        ),
    ],
    "max_steps, val within epochs": [
        *("data.val_size=20", "data.batch_size=8", "trainer.max_epochs=null", "trainer.max_steps=12"),
        *("callbacks=none", "trainer.val_check_interval=2", "model.name=dropout", "schedule=linear"),
    ],
    "frozen trunk": [
        *("data.val_size=20", "data.batch_size=10", "trainer.max_epochs=2", "model.name=dropout", "augment=photo"),
        *("callbacks=none", "freeze_trunk=0.5", "schedule=finetune", "optimizer=adamw", "trainer.val_check_interval=3"),
    ],
}


def remember_saves(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Keep a copy of last.ckpt after each save, by the training batches that were done."""

    def copy(trainer, path):
        folder.mkdir(exist_ok=True)
        shutil.copy(path, folder / f"{trainer.fit_loop.total_batch_idx + 1}.ckpt")

    after_each_save(monkeypatch, copy)


def resume(compose, checkpoint: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(checkpoint, folder / "checkpoints" / "last.ckpt")
    return train(compose(*QUIET, *overrides, f"output_dir={folder}", f"resume={folder}"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_from_every_step(recipe, compose, tmp_path, monkeypatch):
    overrides = [*RECIPES[recipe], "checkpoint.every_minutes=0"]
    remember_saves(monkeypatch, tmp_path / "saved")
    whole = train(compose(*QUIET, *overrides))
    saved = sorted((tmp_path / "saved").iterdir(), key=lambda path: int(path.stem))
    assert len(saved) >= 4
    monkeypatch.undo()
    monkeypatch.setitem(models.NETWORKS, "dropout", Dropout)
    for checkpoint in saved:
        folder = tmp_path / checkpoint.stem
        metrics = resume(compose, checkpoint, folder, *overrides, "seed=0")
        assert differences(last(folder), last(tmp_path / "run")) == [], checkpoint.stem
        assert differences(metrics, whole) == [], checkpoint.stem


def test_from_the_best_checkpoint_of_any_validation(compose, tmp_path, monkeypatch):
    overrides = [*RECIPES["val, augmentation, dropout, schedule"], "trainer.val_check_interval=2", "seed=0"]
    validated = RunCheckpoints.on_validation_end

    def keep(self, trainer, pl_module):
        self._best = None
        validated(self, trainer, pl_module)
        if not trainer.sanity_checking:
            shutil.copy(tmp_path / "run" / "checkpoints" / "best.ckpt", tmp_path / f"{trainer.global_step}.ckpt")

    with monkeypatch.context() as patch:
        patch.setattr(RunCheckpoints, "on_validation_end", keep)
        whole = train(compose(*QUIET, *overrides))
    saved = sorted(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem))
    assert len(saved) >= 4
    for checkpoint in saved[::2]:
        folder = tmp_path / checkpoint.stem
        metrics = resume(compose, checkpoint, folder, *overrides)
        assert differences(metrics, whole) == []
        assert differences(last(folder)["state_dict"], last(tmp_path / "run")["state_dict"]) == []


def test_it_would_differ_without_the_state_of_the_loader(compose, tmp_path, monkeypatch):
    overrides = [*RECIPES["val, augmentation, dropout, schedule"], "checkpoint.every_minutes=0"]
    remember_saves(monkeypatch, tmp_path / "saved")
    train(compose(*QUIET, *overrides))
    monkeypatch.setattr(Batches, "load_state_dict", lambda self, state_dict: None)
    resume(compose, tmp_path / "saved" / "1.ckpt", tmp_path / "resumed", *overrides)
    assert ".state_dict.net.conv1.weight" in differences(last(tmp_path / "resumed"), last(tmp_path / "run"))


@pytest.mark.parametrize(
    "part",
    [("progress", "train_metrics"), ("progress", "random_states"), ("callbacks", "Freezing")],
)
def test_it_would_differ_without_the_state_that_lightning_does_not_keep(part, compose, tmp_path, monkeypatch):
    """Each part of it is needed: with the fresh run's in its place, something else comes out."""
    overrides = [*RECIPES["val, augmentation, dropout, schedule"], "checkpoint.every_minutes=0"]
    remember_saves(monkeypatch, tmp_path / "saved")
    whole = train(compose(*QUIET, *overrides))
    contents = [torch.load(tmp_path / "saved" / f"{step}.ckpt", weights_only=True) for step in (1, 7)]
    place, name = part
    contents[1][place][name] = contents[0][place][name]
    torch.save(contents[1], tmp_path / "mixed.ckpt")
    metrics = resume(compose, tmp_path / "mixed.ckpt", tmp_path / "resumed", *overrides)
    found = differences([metrics, last(tmp_path / "resumed")], [whole, last(tmp_path / "run")])
    assert found != []  # not the contents themselves, which pytest would print
