"""evaluate.py: exactly the numbers of train.py, on what the checkpoint names or what is typed."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BARE, FAST, of_checkpoint
from PIL import Image

from cifar_lightning.checkpoint.format import read
from cifar_lightning.checkpoint.load import load_classifier
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.data import CIFAR10
from cifar_lightning.data.download import Patience
from cifar_lightning.device import threads


def test_no_interpolation_of_a_checkpoint_is_resolved(command, tmp_path):
    folder = tmp_path / "run"
    assert command("train.py", *FAST, "callbacks=none", f"output_dir={folder}", tiny=True).code == 0
    file = folder / "checkpoints" / "last.ckpt"
    sentinel = tmp_path / "sentinel"
    for key, name in (("trainer", "precision"), ("data", "note"), ("data", "root")):
        checkpoint = torch.load(file, weights_only=True)
        checkpoint["settings"][key][name] = f"${{oc.create:{{_target_:os.mkdir,path:{sentinel}}}}}"
        torch.save(checkpoint, tmp_path / "hostile.ckpt")
        outcome = command("evaluate.py", f"ckpt={tmp_path / 'hostile.ckpt'}", "output_dir=evaluated", tiny=True)
        assert outcome.code == 2
        assert f"settings.{key}.{name} holds an interpolation" in outcome.err
        assert not sentinel.exists()
        assert not (tmp_path / "evaluated").exists()


def test_evaluate_takes_device_and_compilation_of_a_cpu_run_along(run):
    _, folder = run(*BARE)
    overrides = of_checkpoint(folder)
    assert {"trainer.accelerator='cpu'", "compile=false", "trainer.precision=null"} <= set(overrides)


@pytest.mark.parametrize(
    ("tiny", "overrides"),
    [
        (False, ("experiment=smoke", "trainer.limit_train_batches=20")),
        (True, ("augment=crop_flip", "normalize=cifar10", "trainer.precision=64-true", "data.val_size=20")),
    ],
)
def test_evaluate_gives_exactly_the_numbers_of_train(command, tmp_path, tiny, overrides):
    folder = tmp_path / "run a b é"
    assert command("train.py", *FAST, *BARE, f"output_dir='{folder}'", *overrides, tiny=tiny).code == 0
    trained = json.loads((folder / "metrics.json").read_text())
    again = ["data.dataset._target_=conftest.TinyCIFAR10"] if tiny else []
    for split in ("test", "val"):
        outcome = command("evaluate.py", f"ckpt='{folder}/checkpoints/last.ckpt'", f"split={split}", *again)
        assert outcome.code == 0, outcome.err
        evaluated = folder / "evaluate" / ("last" if split == "test" else "last-val")
        found = json.loads((evaluated / "metrics.json").read_text())
        names = (
            f"{split}/acc",
            f"{split}/balanced_acc",
            f"{split}/loss",
            f"{split}/ece",
            f"num_{split}_images",
            "data",
            "data_note",
            "device",
            "precision",
        )
        assert [found[name] for name in names] == [trained[name] for name in names]
        with (evaluated / "predictions.csv").open() as file:
            correct = [int(row["correct"]) for row in csv.DictReader(file)]
        assert len(correct) == trained[f"num_{split}_images"]
        assert sum(correct) / len(correct) == trained[f"{split}/acc"]
        assert len(found[f"{split}/class_acc"]) == 10
        assert (evaluated / "confusion.png").stat().st_size > 10_000
        assert (evaluated / "samples.png").stat().st_size > 10_000


def test_test_time_augmentation_stands_beside_the_plain_figures(command, tmp_path):
    folders = [tmp_path / "plain", tmp_path / "tta"]
    for folder, tta in zip(folders, (0, 2), strict=True):
        arguments = (*FAST, *BARE, "data.val_size=20", f"tta={tta}", f"output_dir={folder}")
        assert command("train.py", *arguments, tiny=True).code == 0
    plain, augmented = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    names = [f"test/{name}" for name in ("acc", "balanced_acc", "loss", "ece")]
    assert [augmented[name] for name in names] == [plain[name] for name in names]
    assert augmented["test/loss_tta"] != plain["test/loss"]
    assert "test/acc_tta" not in plain
    assert "val/acc_tta" not in augmented  # validation during training costs six times as much with it

    # evaluate.py does as training did, and does otherwise where asked to.
    ckpts = [f"ckpt={folder}/checkpoints/last.ckpt" for folder in folders]
    for arguments in ([ckpts[1]], [ckpts[0], "tta=2", f"output_dir={tmp_path}/evaluated"]):
        outcome = command("evaluate.py", *arguments, "data.dataset._target_=conftest.TinyCIFAR10")
        assert outcome.code == 0, outcome.err
        assert "test/acc_tta" in outcome.out
    for evaluated in (folders[1] / "evaluate" / "last", tmp_path / "evaluated"):
        found = json.loads((evaluated / "metrics.json").read_text())
        for name in names:
            assert (found[name], found[f"{name}_tta"]) == (plain[name], augmented[f"{name}_tta"])


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Three classes of own images, of 40x36 pixels: 8 to train on, 2 to validate, 4 to test, each."""
    rng = np.random.default_rng(0)
    for split, num_images in {"train": 8, "val": 2, "test": 4}.items():
        for name in ("cat", "dog", "a goat"):
            (tmp_path / "own images" / split / name).mkdir(parents=True)
            for i in range(num_images):
                pixels = rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "own images" / split / name / f"{i}.png")
    return tmp_path / "own images"


def test_own_images_are_trained_on_and_evaluated(command, tmp_path, pictures):
    folder = tmp_path / "run"
    given = ("data=folder", f"data.root='{pictures}'", "normalize=auto", "callbacks=none", f"output_dir={folder}")
    outcome = command("train.py", *FAST, *given)
    assert outcome.code == 0, outcome.err
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [metrics[f"num_{split}_images"] for split in ("val", "test")] == [6, 12]
    checkpoint = read(folder / "checkpoints" / "best.ckpt")
    assert checkpoint["settings"]["classes"] == ["a goat", "cat", "dog"]
    assert checkpoint["settings"]["model"]["num_classes"] == 3
    for split in ("test", "val"):
        outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", f"split={split}")
        assert outcome.code == 0, outcome.err
        place = folder / "evaluate" / ("last" if split == "test" else "last-val")
        evaluated = json.loads((place / "metrics.json").read_text())
        assert [evaluated[f"{split}/{name}"] for name in ("acc", "loss")] == [
            metrics[f"{split}/{name}"] for name in ("acc", "loss")
        ]


def test_own_images_are_evaluated_at_the_size_they_were_trained_at(command, tmp_path, pictures):
    folder = tmp_path / "run"
    own = ("data=folder", f"data.root='{pictures}'")
    given = (*own, "data.image_size=34", "model=speedrun", "optimizer.lr=0.01", *BARE, f"output_dir={folder}")
    assert command("train.py", *FAST, *given).code == 0
    expected = json.loads((folder / "metrics.json").read_text())["test/loss"]
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", *own)
    assert outcome.code == 0, outcome.err
    assert json.loads((folder / "evaluate" / "last" / "metrics.json").read_text())["test/loss"] == expected


def test_images_of_a_size_that_the_network_cannot_take(command, tmp_path, pictures):
    folder = tmp_path / "run"
    own = ("data=folder", f"data.root='{pictures}'", "model=speedrun", "optimizer.lr=0.01")
    outcome = command("train.py", *FAST, *own, "data.image_size=8")
    assert outcome.code == 2
    assert outcome.err.startswith("error: model=speedrun cannot take images of 3x8x8: ")
    assert command("train.py", *FAST, *own, *BARE, f"output_dir={folder}").code == 0
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", "data.image_size=8")
    assert outcome.code == 2
    assert outcome.err.startswith("error: the checkpoint's model=speedrun cannot take images of 3x8x8: ")


def test_images_of_other_classes_are_not_evaluated(command, tmp_path, pictures):
    folder = tmp_path / "run"
    assert command("train.py", *FAST, *BARE, f"output_dir={folder}", tiny=True).code == 0
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", "data=folder", f"data.root='{pictures}'")
    assert outcome.code == 2
    ours, others = ("airplane, automobile, bird", "a goat, cat, dog")
    assert re.fullmatch(rf"error: data: the checkpoint has the classes {ours}.*, the data have {others}\n", outcome.err)


def test_own_images_that_cannot_be_used_are_listed_before_training(command, tmp_path, pictures):
    (pictures / "train" / "dog" / "3.png").write_bytes(b"no image")
    (pictures / "test" / "cat" / "notes.txt").write_text("hello")
    outcome = command("train.py", *FAST, "data=folder", f"data.root='{pictures}'")
    assert outcome.code == 2
    assert re.match(r"error: data: 2 paths in .* cannot be used, .*: test/cat/notes\.txt: .*; train/dog/3", outcome.err)
    assert command("train.py", *FAST, "data=folder").err.startswith("error: data.root has no value: set it with")


def test_evaluate_takes_plain_values_and_no_addresses_from_a_checkpoint(run):
    _, folder = run(*BARE)
    given = of_checkpoint(folder)
    assert any(override.startswith("data.root=") for override in given)
    assert not any(override.startswith(("data.urls", "data.options", "data.dataset")) for override in given)


def test_evaluate_computes_on_the_checkpoints_threads(command, tmp_path, monkeypatch):
    used = []
    original = ImageClassifier.test_step
    monkeypatch.setattr(
        ImageClassifier, "test_step", lambda self, *args: used.append(torch.get_num_threads()) or original(self, *args)
    )
    with threads(2):
        quick = (*FAST, *BARE, "experiment=smoke", "trainer.max_steps=1", "data.val_size=0")
        assert command("train.py", *quick, "data.batch_size=4", f"output_dir={tmp_path / 'run'}").code == 0
        assert command("evaluate.py", f"ckpt={tmp_path / 'run'}/checkpoints/last.ckpt").code == 0
        assert set(used) == {1}
        assert torch.get_num_threads() == 2


def test_evaluate_takes_a_class_given_again_and_no_class_from_the_file(command, tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "patience", Patience(attempts=1))  # there is no network
    folder = tmp_path / "run"
    assert command("train.py", *FAST, "callbacks=none", f"output_dir={folder}", tiny=True).code == 0
    stored = read(folder / "checkpoints" / "last.ckpt")["settings"]["data"]
    assert stored["dataset"]["_target_"] == "TinyCIFAR10"  # the name of a class, not where it is
    given = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", "data.dataset._target_=conftest.TinyCIFAR10")
    assert given.code == 0, given.err
    expected = json.loads((folder / "metrics.json").read_text())["test/acc"]
    assert json.loads((folder / "evaluate" / "last" / "metrics.json").read_text())["test/acc"] == expected
    without = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", "output_dir=elsewhere")
    assert without.code == 2  # CIFAR-10's own class refuses these files, and the download is not to be had
    assert without.err.startswith("error: data: test_batch, batches.meta are damaged in")
    assert without.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("split=val",), "split=val: the run has no validation images; train with data.val_size"),
        (("split=train",), "split must be val or test, got train"),
        (("data=synthetic",), "data: the checkpoint has the classes airplane, "),
        (("spit=val",), "spit=val: there is no key spit: did you mean split?"),
    ],
)
def test_evaluate_refuses(command, tmp_path, arguments, message):
    folder = tmp_path / "run"
    assert command("train.py", *FAST, "callbacks=none", f"output_dir={folder}", tiny=True).code == 0
    tiny = not any(argument.startswith("data=") for argument in arguments)
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", *arguments, tiny=tiny)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {message}")
    assert outcome.err.count("\n") == 1


PLACE = "cifar_lightning.report.evaluation_files"


def test_numbers_and_predictions_come_first_and_pictures_may_fail(command, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert command("train.py", *FAST, "callbacks=none", f"output_dir={folder}", tiny=True).code == 0
    evaluated = folder / "evaluate" / "last"
    seen = []

    def draw(*args: object, **options: object) -> None:
        seen.extend(sorted(path.name for path in evaluated.iterdir() if path.suffix != ".log"))
        raise MemoryError("too large")

    monkeypatch.setattr(f"{PLACE}.confusion_matrix", draw)
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", tiny=True)
    assert (outcome.code, outcome.err) == (0, "")
    assert [name for name in seen if not name.startswith(".")] == ["metrics.json", "predictions.csv", "settings.json"]
    wrote = [line.rpartition("/")[2] for line in outcome.out.splitlines() if line.startswith(("wrote", "picture"))]
    assert wrote == [
        "metrics.json",
        "predictions.csv",
        "picture   confusion.png cannot be drawn: MemoryError: too large",
        "samples.png",
        "report.html",
    ]
    assert outcome.out.index("test/acc") < outcome.out.index("wrote")


def test_a_report_that_fails_is_a_warning(command, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert command("train.py", *FAST, "callbacks=none", f"output_dir={folder}", tiny=True).code == 0

    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("no figure\ntoday")

    monkeypatch.setattr("cifar_lightning.report.html.svg", fail)
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", tiny=True)
    assert (outcome.code, outcome.err) == (0, "")
    assert "picture   report.html cannot be drawn: RuntimeError: no figure today\n" in outcome.out
    names = {path.name for path in (folder / "evaluate" / "last").iterdir()}
    assert {"metrics.json", "predictions.csv", "confusion.png", "samples.png"} <= names
    assert "report.html" not in names


def test_a_report_has_the_figures_of_metrics_json_and_the_curves_of_the_run(command, tmp_path):
    folder = tmp_path / "run"
    arguments = (*FAST, "callbacks=none", "logger=csv", "data.val_size=20", f"output_dir={folder}")
    assert command("train.py", *arguments, tiny=True).code == 0
    ckpt, pages = f"ckpt={folder}/checkpoints/last.ckpt", []
    for _ in range(2):
        outcome = command("evaluate.py", ckpt, "tta=1", f"output_dir={tmp_path}/evaluated", tiny=True)
        assert (outcome.code, outcome.err) == (0, "")
        pages.append((tmp_path / "evaluated" / "report.html").read_text())
    metrics = json.loads((tmp_path / "evaluated" / "metrics.json").read_text())
    for name in ("loss", "ece", "brier", "loss_calibrated", "ece_calibrated", "loss_calibrated_tta"):
        assert f"{metrics[f'test/{name}']:.4f}" in pages[0]
    for name in ("acc", "acc_low", "acc_high", "acc_tta", "balanced_acc"):
        assert f"{100 * metrics[f'test/{name}']:.2f} %" in pages[0]
    assert "Accuracy during training, by optimizer steps" in pages[0]
    assert "<dt><bdi>optimizer.lr</bdi></dt>" in pages[0]
    assert metrics["is_own_data"] is True
    without_times = [re.sub(r"<dt>seconds</dt><dd><bdi>[\d.]+", "", page) for page in pages]
    assert without_times[0] == without_times[1]


def test_confidences_are_calibrated_where_there_is_a_temperature(command, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    assert command("train.py", *FAST, *BARE, "tta=1", f"output_dir={folder}", tiny=True).code == 0
    trained = json.loads((folder / "metrics.json").read_text())

    def load(*args: object) -> object:
        classifier, checkpoint = load_classifier(*args)
        classifier.temperature = 0.25
        return classifier, checkpoint

    monkeypatch.setattr("cifar_lightning.commands.evaluate.load_classifier", load)
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt", tiny=True)
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads((folder / "evaluate" / "last" / "metrics.json").read_text())
    for suffix in ("", "_tta"):
        for name in ("acc", "balanced_acc", "loss", "ece"):  # as train.py has them
            assert found[f"test/{name}{suffix}"] == trained[f"test/{name}{suffix}"]
        for name in ("loss", "ece", "brier"):
            assert found[f"test/{name}_calibrated{suffix}"] != found[f"test/{name}{suffix}"]
    assert found["temperature"] == 0.25
    with (folder / "evaluate" / "last" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    confidence = [float(row["confidence"]) for row in rows]
    shares = zip(found["reliability_calibrated"], found["reliability"], strict=True)
    assert any(calibrated["num_images"] != plain["num_images"] for calibrated, plain in shares)
    of_bins = sum(row["num_images"] * (row["confidence"] or 0) for row in found["reliability_calibrated"])
    assert sum(confidence) == pytest.approx(of_bins, abs=1e-4)
    assert {"label_quality", "suspected_label"} <= set(rows[0])
    assert sum(row["suspected_label"] != "" for row in rows) == found["num_suspected_labels"]


def test_names_of_classes_are_shown_as_they_are(command, tmp_path, pictures):
    for split in ("train", "val", "test"):
        for name, odd in (("cat", "=1+1"), ("dog", ":dog: [old]"), ("a goat", "test︱acc $x$ 猫")):
            (pictures / split / name).rename(pictures / split / odd)
    folder = tmp_path / "run"
    outcome = command("train.py", *FAST, *BARE, "data=folder", f"data.root='{pictures}'", f"output_dir={folder}")
    assert (outcome.code, outcome.err) == (0, "")
    outcome = command("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt")
    assert (outcome.code, outcome.err) == (0, "")
    names = ["=1+1", ":dog: [old]", "test︱acc $x$ 猫"]
    assert all(f"│ {name} " in outcome.out for name in names)
    assert "cannot be drawn" not in outcome.out
    metrics = json.loads((folder / "evaluate" / "last" / "metrics.json").read_text())
    assert set(metrics["test/class_acc"]) == set(names)
    with (folder / "evaluate" / "last" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        assert {row["target"] for row in csv.DictReader(file)} == {"'=1+1", *names[1:]}
