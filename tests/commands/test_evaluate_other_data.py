"""evaluate.py on other data than those of the run, and on several checkpoints: what is typed wins, nothing is lost."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import BARE, FAST
from PIL import Image

from cifar_lightning.checkpoint.format import read


def answer(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def pets(tmp_path) -> Path:
    """Three classes of own images: 6 to train on and 2 to test, each."""
    root = tmp_path / "pets"
    for number, name in enumerate(("cat", "dog", "goat")):
        for i in range(6):
            draw(root / "train" / name / f"{i}.png", 100 * number + i)
        for i in range(2):
            draw(root / "test" / name / f"{i}.png", 100 * number + 50 + i)
    return root


@pytest.fixture
def trained(command, tmp_path, pets):
    """A run on them, with 6 of the training images set aside for validation; gives its folder."""

    def train(*overrides: str) -> Path:
        folder = tmp_path / "run"
        own = ("data=folder", f"data.root={pets}", "data.val_size=6", *BARE, f"output_dir={folder}")
        outcome = command("train.py", *FAST, *own, *overrides)
        assert outcome.code == 0, outcome.err
        return folder

    return train


def test_a_checkpoint_knows_its_data_from_others(trained, pets, command):
    folder = trained()
    ckpt = f"ckpt={folder}/checkpoints/last.ckpt"
    assert set(read(folder / "checkpoints" / "last.ckpt")["settings"]["fingerprint"]) == {"train", "test", "val"}
    for split in ("test", "val"):
        outcome = command("evaluate.py", ckpt, f"split={split}")
        assert outcome.code == 0, outcome.err
        assert "these are not the" not in outcome.out
    expected = {"val": answer(folder / "evaluate" / "last-val")["val/loss"]}

    draw(pets / "train" / "cat" / "new.png", 7)  # grown: validation images would be drawn anew
    outcome = command("evaluate.py", ckpt, "split=val")
    assert outcome.code == 2
    assert outcome.err.startswith(
        "error: split=val: these are not the training images, or not the choice of validation"
    )
    assert outcome.err.count("\n") == 1
    assert answer(folder / "evaluate" / "last-val")["val/loss"] == expected["val"]
    outcome = command("train.py", f"resume={folder}", "trainer.max_epochs=3")
    assert outcome.code == 2
    assert outcome.err.startswith(
        f"error: resume={folder}: the training images are not those that the run started with"
    )

    (pets / "train" / "cat" / "new.png").unlink()
    draw(pets / "train" / "cat" / "0.png", 8)  # another image in place of one
    assert command("evaluate.py", ckpt, "split=val").code == 2
    assert command("train.py", f"resume={folder}", "trainer.max_epochs=3").code == 2
    draw(pets / "train" / "cat" / "0.png", 0)  # as it was
    assert command("train.py", f"resume={folder}", "trainer.max_epochs=3").code == 0

    draw(pets / "test" / "dog" / "1.png", 9)
    assert command("evaluate.py", ckpt).err.startswith(
        f"error: output_dir={folder}/evaluate/last holds results with other"
    )
    outcome = command("evaluate.py", ckpt, f"output_dir={folder}/evaluate/anew")
    assert outcome.code == 0
    assert "note      these are not the test images that the run was started with" in outcome.out
    outcome = command("train.py", f"resume={folder}", "trainer.max_epochs=4")
    assert outcome.err.startswith(f"error: resume={folder}: the test images are not those that the run started with")


def test_a_choice_of_val_size_auto_is_found_again(trained, pets, command):
    folder = trained("data.val_size=auto")
    settings = read(folder / "checkpoints" / "last.ckpt")["settings"]
    assert settings["data"]["val_size"] == "auto"
    assert command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", "split=val").code == 0
    assert answer(folder)["num_val_images"] == 3
    assert answer(folder / "evaluate" / "last-val")["val/loss"] == answer(folder)["val/loss"]
    assert command("train.py", f"resume={folder}", "trainer.max_epochs=3").code == 0
    draw(pets / "val" / "cat" / "0.png", 9)  # now it is another choice
    assert (
        "so it may have been trained on"
        in command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", "split=val", f"output_dir={folder}/anew").err
    )


@pytest.mark.parametrize("overrides", [("data.val_size=9",), ("data.split_seed=1",)])
def test_no_image_that_was_trained_on_is_validated_on(trained, command, overrides):
    folder = trained()
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", "split=val", *overrides)
    assert outcome.code == 2
    assert "so it may have been trained on some of them" in outcome.err


def test_a_folder_with_test_images_alone_is_evaluated(trained, pets, command, tmp_path):
    folder = trained("data.batch_size=10")
    alone = tmp_path / "alone"
    shutil.copytree(pets / "test", alone / "test")
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", f"data.root={alone}")
    assert outcome.code == 0, outcome.err  # of 6 images, fewer than a batch of training
    (evaluated,) = folder.glob("evaluate/last-*")
    assert answer(evaluated)["test/loss"] == answer(folder)["test/loss"]
    dog = answer(evaluated)["test/class_acc"]["dog"]

    shutil.rmtree(alone / "test" / "cat")  # the classes that are there are found by their names
    arguments = (f"ckpt={folder}/checkpoints/last.ckpt", f"data.root={alone}")
    assert "holds results with other settings, other test images: " in command("evaluate.py", *arguments).err
    outcome = command("evaluate.py", *arguments, f"output_dir={tmp_path / 'two'}")
    assert outcome.code == 0, outcome.err
    found = answer(tmp_path / "two")
    assert found["num_test_images"] == 4
    assert (found["test/class_acc"]["cat"], found["test/class_acc"]["dog"]) == (None, dog)


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "all gone"])
def test_what_becomes_of_train_after_training_does_not_change_the_test(change, trained, pets, command):
    folder = trained()
    expected = answer(folder)
    train = pets / "train"
    if change == "added":
        draw(train / "a horse" / "0.png", 900)  # the first in the order of names
        draw(train / "wolf" / "0.png", 901)
    elif change == "removed":
        shutil.rmtree(train / "cat")
    elif change == "renamed":
        (train / "dog").rename(train / "Dog")
        (train / "cat" / "0.png").write_bytes(b"damaged")
    else:
        shutil.rmtree(train)
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", "split=test")
    assert outcome.code == 0, outcome.err
    assert "these are not the" not in outcome.out
    found = answer(folder / "evaluate" / "last")
    assert [name for name in expected if name.startswith("test/") and found[name] != expected[name]] == []
    assert found["num_test_images"] == expected["num_test_images"]
    assert list(found["test/class_acc"]) == ["cat", "dog", "goat"]


@pytest.mark.parametrize(
    ("new", "in_training"),
    [("Dog", "test/Dog: not a class of train/, but dog is: rename it; "), ("ape", "test/ape: not a class of train/; ")],
)
def test_a_class_of_test_that_the_checkpoint_does_not_know_is_refused(new, in_training, trained, pets, command):
    folder = trained()
    (pets / "test" / "dog").rename(pets / "test" / new)
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt")
    names = ", ".join(sorted(["cat", "goat", new]))
    assert outcome.refusal == f"data: the checkpoint has the classes cat, dog, goat, the data have {names}"
    assert command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", "split=val").code == 0
    refusal = command("train.py", *FAST, *BARE, "data=folder", f"data.root={pets}").refusal
    assert refusal == (
        f"data: 2 paths in {pets} cannot be used, remove or mend them: {in_training}test/dog: a class without images"
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_before_training_both_splits_must_have_the_same_classes(split, pets, command):
    draw(pets / split / "wolf" / "0.png", 900)
    (pets / "train" / "cat" / "0.png").write_bytes(b"damaged")  # what else is to be mended is said at once
    refusal = command("train.py", *FAST, *BARE, "data=folder", f"data.root={pets}").refusal
    reason = "a class without images" if split == "train" else "not a class of train/"
    listed = f"test/wolf: {reason}; train/cat/0.png: not an image of a known format"
    assert refusal.startswith(f"data: 2 paths in {pets} cannot be used, remove or mend them: {listed}")


def test_a_test_folder_with_fewer_classes_is_evaluated_by_their_names(trained, pets, command, tmp_path):
    folder = trained()
    before, after = tmp_path / "before", tmp_path / "after"
    assert command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", f"output_dir={before}").code == 0
    shutil.rmtree(pets / "test" / "cat")
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", f"output_dir={after}")
    assert outcome.code == 0, outcome.err
    assert answer(after)["test/class_acc"] == {**answer(before)["test/class_acc"], "cat": None}
    assert "note      these are not the test images that the run was started with" in outcome.out


def test_validation_needs_no_test_images(trained, pets, command):
    folder = trained()
    expected = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", "split=val")
    before = answer(folder / "evaluate" / "last-val")["val/loss"]
    shutil.rmtree(pets / "test")
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", "split=val")
    assert (expected.code, outcome.code) == (0, 0), outcome.err
    assert answer(folder / "evaluate" / "last-val")["val/loss"] == before


def test_an_evaluation_with_other_settings_keeps_the_first(trained, command):
    folder = trained()
    ckpt = f"ckpt={folder}/checkpoints/last.ckpt"
    limited = ("tta=1", "trainer.limit_test_batches=1")
    for overrides in ((), ("tta=1",), ("trainer.precision=64-true",), limited, ("tta=0",)):
        outcome = command("evaluate.py", ckpt, *overrides)
        assert outcome.code == 0, outcome.err
    names = sorted(path.name for path in (folder / "evaluate").iterdir())
    assert names[:3] == ["last", "last-64_true", "last-tta1"]
    assert len(names) == 4
    assert names[3].startswith("last-tta1-")
    assert "test/acc_tta" not in answer(folder / "evaluate" / "last")
    assert "test/acc_tta" in answer(folder / "evaluate" / "last-tta1")
    outcome = command("evaluate.py", ckpt, f"output_dir={folder}/evaluate/last", "tta=1")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: output_dir={folder}/evaluate/last holds results with other settings, tta=0")
    assert "test/acc_tta" not in answer(folder / "evaluate" / "last")


@pytest.mark.parametrize("overrides", [("data.name=pets",), ("data.name=2026",)])
def test_data_under_a_name_of_ones_own(trained, command, overrides):
    folder = trained(*overrides)
    for typed in ((), ("data=folder",)):
        outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", *typed)
        assert outcome.code == 0, outcome.err
        assert answer(folder / "evaluate" / "last")["data"] == overrides[0].partition("=")[2]
    assert [path.name for path in (folder / "evaluate").iterdir()] == ["last"]


def test_a_data_file_of_ones_own(command, tmp_path, pets):
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "pets.yaml").write_text(f"defaults: [folder, _self_]\nname: pets\nroot: {pets}\n")
    folder = tmp_path / "run"
    own = ("--config-dir", str(tmp_path / "mine"))
    outcome = command("train.py", *own, *FAST, *BARE, "data=pets", "data.val_size=6", f"output_dir={folder}")
    assert outcome.code == 0, outcome.err
    ckpt = f"ckpt={folder}/checkpoints/last.ckpt"
    for typed in ((*own,), (*own, "data=pets"), (f"--config-dir={tmp_path / 'mine'}",), ()):
        outcome = command("evaluate.py", ckpt, *typed, "split=val")
        assert outcome.code == 0, (typed, outcome.err)
        assert answer(folder / "evaluate" / "last-val")["val/acc"] == answer(folder)["val/acc"]
    assert [path.name for path in (folder / "evaluate").iterdir()] == ["last-val"]


def test_several_checkpoints_are_evaluated_in_one_go(command, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for seed, folder in enumerate(folders):
        tta = f"tta={seed}"
        assert command("train.py", *FAST, *BARE, f"seed={seed}", tta, f"output_dir={folder}", tiny=True).code == 0
    both = f"ckpt={','.join(str(folder / 'checkpoints' / 'last.ckpt') for folder in folders)}"
    outcome = command("evaluate.py", both, tiny=True)
    assert outcome.code == 2
    assert outcome.err.endswith("names several checkpoints: add -m to take each of them\n")

    outcome = command("evaluate.py", "-m", both, tiny=True)
    assert outcome.code == 0, outcome.err
    for seed, folder in enumerate(folders):
        found, expected = answer(folder / "evaluate" / "last"), answer(folder)
        for name in ("test/acc", "test/loss", *(["test/acc_tta"] if seed else [])):
            assert found[name] == expected[name]
        assert ("test/acc_tta" in found) == bool(seed)  # each as its own checkpoint says

    outcome = command("evaluate.py", "-m", both, f"output_dir={tmp_path / 'out'}", tiny=True)
    assert outcome.code == 0, outcome.err
    losses = [answer(tmp_path / "out" / str(number))["test/loss"] for number in (0, 1)]
    assert losses == [answer(folder)["test/loss"] for folder in folders]


def test_a_missing_checkpoint_of_several_stops_no_other(command, tmp_path):
    folder = tmp_path / "a"
    assert command("train.py", *FAST, *BARE, f"output_dir={folder}", tiny=True).code == 0
    ckpt = folder / "checkpoints" / "last.ckpt"
    outcome = command("evaluate.py", "-m", f"ckpt={tmp_path}/none.ckpt,{ckpt}", tiny=True)
    assert outcome.code == 1
    assert f"there is no file {tmp_path}/none.ckpt" in outcome.err
    assert (folder / "evaluate" / "last" / "metrics.json").exists()


def test_files_of_others_are_not_written_over(trained, command, tmp_path):
    folder = trained()
    paper = tmp_path / "paper"
    paper.mkdir()
    (paper / "metrics.json").write_text("mine")
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", f"output_dir={paper}")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: output_dir={paper} holds metrics.json, which would be written over")
    assert (paper / "metrics.json").read_text() == "mine"


@pytest.mark.parametrize("limit", ["0", "0.001"])
def test_a_limit_that_leaves_nothing_is_refused(trained, command, limit):
    folder = trained()
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", f"trainer.limit_test_batches={limit}")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: trainer.limit_test_batches={limit} leaves none of the 1 batches")


def test_a_name_that_is_also_another_choice_misleads_nobody(trained, command):
    folder = trained("data.name=synthetic")
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt")
    assert outcome.code == 0, outcome.err
    assert answer(folder / "evaluate" / "last")["test/loss"] == answer(folder)["test/loss"]


def test_a_value_that_does_not_fit_a_job_is_one_line(trained, command):
    folder = trained()
    outcome = command("evaluate.py", "-m", f"ckpt={folder}/checkpoints/last.ckpt", "tta=0,a")
    assert outcome.code in (1, 2)
    assert "tta" in outcome.err
    assert "Traceback" not in outcome.err
