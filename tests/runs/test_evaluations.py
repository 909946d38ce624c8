"""The folder of an evaluation of a checkpoint."""

import re

import pytest

from cifar_lightning.errors import UserError
from cifar_lightning.runs.evaluations import changed, deciding, evaluation_folder, record_settings

OWN = {
    "tta": 2,
    "trainer": {"precision": "bf16-mixed", "limit_test_batches": 3},
    "data": {"name": "folder", "root": "pets", "val_size": None, "dataset": {"_target_": "ImageFolder"}},
}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"tta": 2, "trainer.precision": "bf16-mixed", "data.name": "folder", "data.root": "pets"},
        {"data.dataset._target_": "cifar_lightning.data.ImageFolder", "data.val_size": None},
        {"data.batch_size": 3, "data.eval_batch_size": 9, "data.urls": ["x"], "num_threads": 2, "compile": True},
        {"trainer.accelerator": "cpu", "trainer.limit_test_batches": None, "split": "val"},
        {"other_sets": "auto", "corruptions": False},
        {"other_sets": ["auto"]},
    ],
)
def test_the_settings_of_the_checkpoint_are_no_change(asked):
    assert changed(asked, OWN) == {}


def test_the_same_root_by_another_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert changed({"data.root": str(tmp_path / "pets")}, OWN) == {}
    assert changed({"data.root": str(tmp_path / "cats")}, OWN) == {"data.root": str(tmp_path / "cats")}


def test_no_precision_is_single_precision():
    own = {"trainer": {"precision": None}, "tta": 0}
    assert changed({"trainer.precision": "32-true"}, own) == {}
    assert changed({"trainer.precision": None}, {"trainer": {"precision": "32-true"}}) == {}


@pytest.mark.parametrize(
    ("split", "changes", "name"),
    [
        ("test", {}, "last"),
        ("val", {}, "last-val"),
        ("test", {"tta": 0}, "last-tta0"),
        ("val", {"tta": 0, "trainer.precision": "64-true"}, "last-val-tta0-64_true"),
        ("test", {"trainer.precision": None}, "last-32_true"),
        ("test", {"data": "cifar100"}, "last-cifar100"),
        ("test", {"data": "folder", "data.name": "my pets/1"}, "last-my_pets_1"),
        ("test", {"data.root": "/other"}, r"last-[0-9a-f]{8}"),
        ("test", {"data": "folder", "data.root": "/other"}, r"last-folder-[0-9a-f]{8}"),
        ("val", {"corruptions": True, "tta": 1}, "last-val-tta1-corruptions"),
        ("test", {"corruptions": True, "other_sets": ["photos"]}, r"last-corruptions-[0-9a-f]{8}"),
    ],
)
def test_other_settings_have_another_folder_beside(split, changes, name):
    folder = evaluation_folder("logs/x/now/checkpoints/last.ckpt", split, changes)
    assert re.fullmatch(rf"logs/x/now/evaluate/{name}", folder)
    assert evaluation_folder("logs/x/now/checkpoints/last.ckpt", split, dict(reversed(changes.items()))) == folder


@pytest.mark.parametrize(
    "asked",
    [
        {"trainer.limit_test_batches": 1},
        {"trainer.limit_val_batches": 0.5},
        {"trainer.fast_dev_run": True},
        {"trainer.overfit_batches": 1},
        {"data.image_size": 64},
    ],
)
def test_fewer_or_other_images_are_a_change(asked):
    assert changed(asked, OWN) == asked


def test_the_trainers_defaults_are_no_change():
    asked = {"trainer.limit_test_batches": None, "trainer.fast_dev_run": False, "trainer.overfit_batches": 0.0}
    assert changed(asked, OWN) == {}


def test_a_folder_keeps_one_evaluation(tmp_path):
    settings = {"split": "test", "tta": 0, "data.root": None, "data.urls": ("a", "b"), "images.test": "0"}
    record_settings(tmp_path, {**settings, "tta": 2})
    record_settings(tmp_path, settings)  # there were no numbers
    (tmp_path / "metrics.json").write_text("{}")
    record_settings(tmp_path, settings)  # the same again
    with pytest.raises(UserError, match=r"holds results with other settings, other test images, tta=0: name an"):
        record_settings(tmp_path, {**settings, "tta": 1, "images.test": "1"})
    (tmp_path / "settings.json").write_text("[")
    with pytest.raises(UserError, match=r"other settings, settings.json is damaged: name another folder"):
        record_settings(tmp_path, settings)
    assert (tmp_path / "settings.json").read_text() == "["


def test_other_sets_have_a_folder_by_their_names():
    folders = [
        evaluation_folder("run/checkpoints/last.ckpt", "test", changed({"other_sets": asked}, OWN))
        for asked in ("auto", None, "photos", ["photos"], ("photos",), ["auto", "photos"], ["a"])
    ]
    assert folders[0] == "run/evaluate/last"
    assert folders[2] == folders[3] == folders[4]
    assert len(set(folders)) == 5


def test_a_folder_may_gain_other_sets_and_not_lose_them(tmp_path):
    settings = deciding({"tta": 0, "other_sets": ["auto"], "corruptions": False})
    assert settings == {"tta": 0}  # as before there were such keys
    record_settings(tmp_path, settings)
    (tmp_path / "metrics.json").write_text("{}")
    record_settings(tmp_path, {**settings, "sets.CIFAR-10.1 v6": "0"})
    record_settings(tmp_path, {**settings, "sets.CIFAR-10.1 v6": "0", "sets.CIFAR-10H": "1"})
    with pytest.raises(UserError, match=r"holds results with other settings, CIFAR-10H as it was: name another"):
        record_settings(tmp_path, {**settings, "sets.CIFAR-10.1 v6": "0"})
    with pytest.raises(UserError, match=r"other settings, CIFAR-10.1 v6 as it was: name another"):
        record_settings(tmp_path, {**settings, "sets.CIFAR-10.1 v6": "9", "sets.CIFAR-10H": "1"})


def test_a_checkpoint_outside_a_run_gets_a_new_folder():
    assert re.fullmatch(r"logs/evaluate/\d{4}-\d\d-\d\d_.*", evaluation_folder("Downloads/last.ckpt", "test", {}))
