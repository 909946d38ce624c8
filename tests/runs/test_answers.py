"""Where the answer to a question about a checkpoint is kept."""

import re

import pytest

from cifar_lightning.errors import UserError
from cifar_lightning.runs.answers import ask, asked_otherwise, evaluation_folder

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
    ],
)
def test_the_same_question(asked):
    assert asked_otherwise(asked, OWN) == {}


def test_the_same_root_by_another_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert asked_otherwise({"data.root": str(tmp_path / "pets")}, OWN) == {}
    assert asked_otherwise({"data.root": str(tmp_path / "cats")}, OWN) == {"data.root": str(tmp_path / "cats")}


def test_no_precision_is_single_precision():
    own = {"trainer": {"precision": None}, "tta": 0}
    assert asked_otherwise({"trainer.precision": "32-true"}, own) == {}
    assert asked_otherwise({"trainer.precision": None}, {"trainer": {"precision": "32-true"}}) == {}


@pytest.mark.parametrize(
    ("split", "otherwise", "name"),
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
    ],
)
def test_another_question_has_another_folder_beside(split, otherwise, name):
    folder = evaluation_folder("logs/x/now/checkpoints/last.ckpt", split, otherwise)
    assert re.fullmatch(rf"logs/x/now/evaluate/{name}", folder)
    assert evaluation_folder("logs/x/now/checkpoints/last.ckpt", split, dict(reversed(otherwise.items()))) == folder


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
def test_fewer_or_other_images_are_another_question(asked):
    assert asked_otherwise(asked, OWN) == asked


def test_the_trainers_defaults_are_no_question():
    asked = {"trainer.limit_test_batches": None, "trainer.fast_dev_run": False, "trainer.overfit_batches": 0.0}
    assert asked_otherwise(asked, OWN) == {}


def test_a_folder_keeps_the_answer_to_one_question(tmp_path):
    question = {"split": "test", "tta": 0, "data.root": None, "data.urls": ("a", "b")}
    ask(tmp_path, question)
    ask(tmp_path, question)  # again
    with pytest.raises(UserError, match=r"holds the answer to another question, tta=0: name another folder"):
        ask(tmp_path, {**question, "tta": 1})
    (tmp_path / "question.json").write_text("[")
    with pytest.raises(UserError, match=r"another question, question.json is damaged: name another folder"):
        ask(tmp_path, question)
    assert (tmp_path / "question.json").read_text() == "["


def test_a_checkpoint_outside_a_run_gets_a_new_folder():
    assert re.fullmatch(r"logs/evaluate/\d{4}-\d\d-\d\d_.*", evaluation_folder("Downloads/last.ckpt", "test", {}))
