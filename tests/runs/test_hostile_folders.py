"""A zoo of run folders made to do harm: nothing outside of them is written, and the answer is one line."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL, TINY

from cifar_lightning.callbacks.curves import TrainingCurves
from cifar_lightning.errors import RunError, UserError
from cifar_lightning.predictor import load
from cifar_lightning.runs.evaluations import evaluation_folder
from cifar_lightning.runs.folder import CONTINUED, LOCK, claimed, results_folder
from cifar_lightning.runs.jobkeys import record_key

OPENED = (*CONTINUED, LOCK)


@pytest.fixture
def outside(tmp_path) -> Path:
    """A file that no run may touch."""
    path = tmp_path / "profile"
    path.write_text("mine\n")
    return path


@pytest.mark.parametrize("name", OPENED)
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_what_is_opened_in_place_is_a_file_of_the_folder(name, kind, outside, tmp_path):
    path = tmp_path / "run" / name
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(outside if kind == "link" else tmp_path / "new")
    (path.parent / "checkpoints").mkdir()
    (path.parent / "checkpoints" / "last.ckpt").touch()  # so that it is a run of this project
    refusal = (
        rf"output_dir=.*run cannot be used: .*{name} is (a link|no regular file): there must be a plain file or none"
    )
    with pytest.raises(UserError, match=refusal):
        claimed(path.parent).__enter__()
    assert outside.read_text() == "mine\n"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["checkpoints", ".hydra"])
def test_a_linked_folder_is_not_swept_or_written_into(place, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    draft = other / ".last.ckpt.ab1_z9xy.cifar-lightning.tmp"
    draft.touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / place).symlink_to(other)
    with pytest.raises(UserError, match=rf"run cannot be used: .*{place} is a link: there must be a plain"):
        claimed(tmp_path / "run").__enter__()
    assert list(other.iterdir()) == [draft]


def test_a_file_with_a_second_name_becomes_the_folders_own(outside, tmp_path):
    folder = tmp_path / "run"
    with claimed(folder):
        pass
    for name in OPENED:
        (folder / name).unlink(missing_ok=True)
        os.link(outside, folder / name)
    with claimed(folder):
        for name in CONTINUED:
            assert (folder / name).read_text() == "mine\n"
            (folder / name).write_text("of the run")
    assert outside.read_text() == "mine\n"
    assert outside.stat().st_nlink == 2  # with the lock, which another process may hold


@pytest.mark.parametrize("linked", ["evaluate", "evaluate/last", "predict"])
def test_results_beside_a_checkpoint_go_through_no_link(linked, tmp_path):
    (tmp_path / "other").mkdir()
    path = tmp_path / "run" / linked
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "other")
    ckpt = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match=rf"{linked} is a link: there must be a plain.*output_dir="):
        results_folder(ckpt, "predict") if linked == "predict" else evaluation_folder(ckpt, "test", {})


def test_a_line_for_a_profile_is_written_nowhere(ended, command, outside):
    metrics = json.loads((ended / "metrics.json").read_text())
    (ended / "metrics.json").write_text(json.dumps(metrics | {"epochs": "1\nrm -r\x1b[2J\n"}))
    outcome = command("train.py", f"resume={ended}", TINY)
    assert outcome.code == 0, outcome.err
    for text in (outcome.out, (ended / "train.log").read_text()):
        assert "already finished: 6 steps; a larger" in text
        assert "rm -r" not in text
    (ended / "train.log").unlink()
    (ended / "train.log").symlink_to(outside)
    assert "train.log is a link: there must be a plain" in command("train.py", f"resume={ended}", TINY).refusal
    (ended / "evaluate" / "last").mkdir(parents=True)
    (ended / "evaluate" / "last" / "evaluate.log").symlink_to(outside)
    evaluated = command("evaluate.py", f"ckpt={ended}/checkpoints/last.ckpt", TINY)
    assert "evaluate.log is a link: there must be a plain" in evaluated.refusal
    assert outside.read_text() == "mine\n"


def test_outputs_that_are_not_finite_are_no_result(ended, command, tmp_path):
    path = ended / "checkpoints" / "last.ckpt"
    contents = torch.load(path, weights_only=True)
    for weights in contents["state_dict"].values():
        weights.mul_(1e30)
    torch.save(contents, tmp_path / "large.ckpt")
    refusal = r"the network's outputs are not finite in precision 32-true"
    outcome = command("evaluate.py", f"ckpt={tmp_path / 'large.ckpt'}", "output_dir=evaluated", TINY)
    assert outcome.code == 1
    assert re.fullmatch(rf"error: ckpt=.*large\.ckpt: {refusal}; try .*\n", outcome.err)
    assert not (tmp_path / "evaluated" / "metrics.json").exists()
    with pytest.raises(RunError, match=refusal):
        load(tmp_path / "large.ckpt", accelerator="cpu").predict(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_an_evaluation_has_numbers_once_all_is_written(ended, command, monkeypatch):
    """Where its predictions find no room, no new numbers stand beside the old ones."""
    evaluated = ended / "evaluate" / "last"

    def full(path, *args, **options):
        raise RunError(f"{path} cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cifar_lightning.commands.evaluate.write_predictions", full)
        outcome = command("evaluate.py", f"ckpt={ended}/checkpoints/last.ckpt", TINY)
    assert outcome.code == 1
    assert outcome.err == f"error: {evaluated / 'predictions.csv'} cannot be written: No space left on device\n"
    assert not (evaluated / "metrics.json").exists()


@pytest.mark.parametrize(
    ("logger", "name"), [("tensorboard", r"events\.out\.tfevents\.\*"), ("csv", r"metrics\.csv"), ("none", None)]
)
def test_a_folder_that_is_removed_meanwhile(logger, name, command, tmp_path, monkeypatch):
    folder, ended = tmp_path / "run", TrainingCurves.on_train_epoch_end

    def remove(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            shutil.rmtree(folder)
        ended(self, trainer, pl_module)

    monkeypatch.setattr(TrainingCurves, "on_train_epoch_end", remove)
    small = (*SMALL, f"logger={logger}", "trainer.max_epochs=3", f"output_dir={folder}")
    outcome = command("train.py", *small, tiny=True)
    if name is None:  # the run makes it anew
        assert (outcome.code, outcome.err) == (0, "")
        assert (folder / "metrics.json").exists()
    else:
        assert outcome.code == 1
        assert re.fullmatch(rf"error: {folder}/{name} cannot be written: .*No such file or directory.*\n", outcome.err)


def test_a_linked_job_folder_is_found_before_the_first_job(command, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "1").symlink_to(tmp_path / "elsewhere")
    outcome = command("train.py", "-m", "seed=0,1", *SMALL, "output_dir=sweep", tiny=True)
    assert "sweep/1 is a link: there must be a plain folder or none; name a folder that" in outcome.refusal
    assert os.listdir(tmp_path / "elsewhere") == []
    assert not (tmp_path / "sweep" / "0").exists()


def test_the_key_of_a_job_goes_through_no_link(tmp_path):
    (tmp_path / "victim").mkdir()
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / ".hydra").symlink_to(tmp_path / "victim")
    (tmp_path / "victim" / "config.yaml").write_text("x: 1")
    record_key(tmp_path / "job", "0" * 64)
    assert os.listdir(tmp_path / "victim") == ["config.yaml"]
