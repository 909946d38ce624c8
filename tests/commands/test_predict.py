"""predict.py: the same answers as evaluate.py, and what is no image is named."""

import csv
import json
import os
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import BARE, FAST, TinyCIFAR10
from PIL import Image

from cifar_lightning.checkpoint.format import read
from cifar_lightning.commands import predict as command_of_predict
from cifar_lightning.commands.predict import predict
from cifar_lightning.config.schema import compose


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder for the checkpoint of a run, made once, and the test images of its data as files."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def run_folder(home, command, tmp_path, tiny_root):
    if not (home / "run").exists():
        options = (*FAST, *BARE, f"output_dir={home / 'run'}", "tta=2", "trainer.max_epochs=1")
        assert command("train.py", *options, tiny=True).code == 0
        (home / "pictures").mkdir()
        for number, pixels in enumerate(TinyCIFAR10(tiny_root, train=False).data):
            Image.fromarray(pixels).save(home / "pictures" / f"{number:02d}.png")
    shutil.copytree(home / "run", tmp_path / "run")
    shutil.copytree(home / "pictures", tmp_path / "pictures")
    return tmp_path / "run"


CKPT = "ckpt=run/checkpoints/last.ckpt"


def test_pictures_of_the_test_set_get_the_predictions_of_evaluate(command, run_folder, tmp_path):
    assert command("evaluate.py", CKPT, tiny=True).code == 0
    evaluated = rows_of(run_folder / "evaluate" / "last" / "predictions.csv")
    for tta, columns in ((0, ("pred", "confidence")), (None, ("pred_tta", "confidence_tta"))):
        extra = [] if tta is None else [f"tta={tta}"]
        outcome = command("predict.py", CKPT, "images=pictures", "output_dir=out", "save_probs=true", *extra)
        assert (outcome.code, outcome.err) == (0, "")
        predicted = rows_of(tmp_path / "out" / "predictions.csv")
        assert [row["file"] for row in predicted] == [f"pictures/{number:02d}.png" for number in range(20)]
        assert [row["class"] for row in predicted] == [row[columns[0]] for row in evaluated]
        found = [float(row["probability"]) for row in predicted]
        assert found == pytest.approx([float(row[columns[1]]) for row in evaluated], abs=2e-6)
        for row in predicted:
            probs = {name.removeprefix("p:"): float(value) for name, value in row.items() if name.startswith("p:")}
            assert sum(probs.values()) == pytest.approx(1, abs=1e-5)
            assert max(probs, key=probs.__getitem__) == row["class"]
        shutil.rmtree(tmp_path / "out")


def test_a_temperature_sharpens_the_probabilities_and_is_told(command, run_folder, tmp_path):
    contents = read(run_folder / "checkpoints" / "last.ckpt")
    assert contents["temperature"] is None  # without validation images
    torch.save(contents | {"temperature": 0.5}, run_folder / "checkpoints" / "calibrated.ckpt")
    said = {
        "last": "probabilities are uncalibrated and may be too high or too low: train with data.val_size=auto",
        "calibrated": "probabilities are calibrated: temperature 0.5, fitted on validation images",
    }
    found, classes = {}, {}
    for name, temperature in (("last", None), ("calibrated", 0.5)):
        arguments = (f"ckpt=run/checkpoints/{name}.ckpt", "images=pictures", f"output_dir={name}", "save_probs=true")
        outcome = command("predict.py", *arguments)
        assert (outcome.code, outcome.err) == (0, "")
        assert [text in outcome.out for text in said.values()] == [name == key for key in said]
        document = json.loads((tmp_path / name / "predictions.json").read_text())
        assert (document["calibrated"], document["temperature"]) == (temperature is not None, temperature)
        rows = rows_of(tmp_path / name / "predictions.csv")
        found[name] = np.array([[float(row[f"p:{label}"]) for label in document["classes"]] for row in rows])
        classes[name] = [row["class"] for row in rows]
        assert [float(row["probability"]) for row in rows] == found[name].max(1).tolist()
    sharpened = found["last"] ** 2  # softmax(2 z) is softmax(z) squared, but for its sum
    np.testing.assert_allclose(found["calibrated"], sharpened / sharpened.sum(1, keepdims=True), atol=2e-5)
    assert classes["calibrated"] == classes["last"]


def test_answers_stand_in_the_run_s_folder_and_none_is_lost(command, run_folder):
    for _ in range(2):
        outcome = command("predict.py", CKPT, "images=pictures/0*.png", "topk=3", "show=true")
        assert outcome.code == 0
        assert "10 pictures\n" in outcome.out
        assert "│ file            │ class " in outcome.out
        assert "│ runners-up" in outcome.out
    folders = sorted((run_folder / "predict").iterdir())
    assert len(folders) == 2
    names = ["predict.log", "predictions.csv", "predictions.json", "predictions.png", "settings.json"]
    assert sorted(name for name in os.listdir(folders[0]) if not name.startswith(".")) == names
    document = json.loads((folders[1] / "predictions.json").read_text())
    assert document["ckpt"] == "run/checkpoints/last.ckpt"
    assert document["tta"] == 2
    assert len(document["classes"]) == 10
    assert [entry["file"] for entry in document["predictions"]] == [f"pictures/0{number}.png" for number in range(10)]
    for entry in document["predictions"]:
        assert len(entry["top"]) == 3
        assert entry["top"][0] == {"class": entry["class"], "probability": entry["probability"]}
        assert "probabilities" not in entry
    with Image.open(folders[0] / "predictions.png") as sheet:
        assert sheet.width > 1_000


def test_a_folder_of_other_answers_is_not_written_over(command, run_folder, tmp_path):
    assert command("predict.py", CKPT, "images=pictures", "output_dir=out").code == 0
    before = (tmp_path / "out" / "predictions.json").read_bytes()
    outcome = command("predict.py", CKPT, "images=pictures/00.png", "output_dir=out")
    assert "/out holds results with other settings, images=['" in outcome.refusal
    assert (tmp_path / "out" / "predictions.json").read_bytes() == before
    outcome = command("predict.py", CKPT, "images=pictures", "output_dir=run")
    assert "/run holds a run already" in outcome.refusal


def test_the_same_name_elsewhere_is_another_picture(command, run_folder, tmp_path, monkeypatch):
    ckpt = f"ckpt={run_folder}/checkpoints/last.ckpt"
    assert command("predict.py", ckpt, "images=pictures/00.png", "output_dir=out").code == 0
    (tmp_path / "elsewhere" / "pictures").mkdir(parents=True)
    shutil.copy(tmp_path / "pictures" / "01.png", tmp_path / "elsewhere" / "pictures" / "00.png")
    monkeypatch.chdir(tmp_path / "elsewhere")
    outcome = command("predict.py", ckpt, "images=pictures/00.png", "output_dir=../out")
    assert "holds results with other settings, images=" in outcome.refusal


def test_files_of_others_are_not_written_over(command, run_folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.csv").write_text("mine")
    assert (
        "holds predictions.csv, which would be"
        in command("predict.py", CKPT, "images=pictures", "output_dir=out").refusal
    )
    assert os.listdir(tmp_path / "out") == ["predictions.csv"]
    assert (tmp_path / "out" / "predictions.csv").read_text() == "mine"


def test_what_is_no_image_is_named_and_the_rest_is_predicted(command, run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(command_of_predict, "_MAX_FILES", 4)  # several blocks of files
    pictures = tmp_path / "pictures"
    (pictures / "00a.txt").write_text("hello")
    (pictures / "05a.png").write_bytes((pictures / "05.png").read_bytes()[:200])
    outcome = command("predict.py", CKPT, "images=pictures", "output_dir=out")
    assert outcome.code == 1
    assert outcome.err == (
        "error: 2 of 22 files cannot be read as images, all others are predicted: pictures/00a.txt: not an image, by "
        "its extension; pictures/05a.png: image file is truncated (out/predictions.csv names each)\n"
    )
    assert "│ pictures/00a.txt │ not an image │             │ not an image, by its extension │" in outcome.out
    assert "│ problem  " in outcome.out
    rows = rows_of(tmp_path / "out" / "predictions.csv")
    assert [row["file"] for row in rows] == sorted(f"pictures/{name}" for name in os.listdir(pictures))
    assert {row["file"]: row["error"] for row in rows if row["error"]} == {
        "pictures/00a.txt": "not an image, by its extension",
        "pictures/05a.png": "image file is truncated",
    }
    assert all(bool(row["class"]) != bool(row["error"]) for row in rows)
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"]
    assert [entry["file"] for entry in entries if "error" in entry] == ["pictures/00a.txt", "pictures/05a.png"]
    whole = command("predict.py", CKPT, "images=pictures/[01][0-9].png", "output_dir=whole")
    assert whole.code == 0
    assert rows_of(tmp_path / "whole" / "predictions.csv") == [row for row in rows if not row["error"]]


def test_the_table_keeps_the_ends_of_long_names(command, run_folder, tmp_path):
    folder = tmp_path / "a_folder_with_a_long_name" / "图片图片图片"
    folder.mkdir(parents=True)
    for number in range(3):
        os.rename(tmp_path / "pictures" / f"0{number}.png", folder / f"image_{number}.png")
    (folder / "image_3.png").write_bytes(b"hello")
    outcome = command("predict.py", CKPT, f"images={folder}", "topk=3", "output_dir=out")
    assert outcome.code == 1
    rows = [line.split(" │ ") for line in outcome.out.splitlines() if "image_" in line]
    assert [re.search(r"/图片图片图片/image_(\d)\.png$", row[0].strip())[1] for row in rows] == list("0123")
    assert all(row[0].startswith("│ …") for row in rows)
    assert all(re.fullmatch(r" *\d+\.\d %", row[2]) for row in rows[:3])
    assert "runners-up, or the" in outcome.out
    outcome = command("predict.py", CKPT, "images=pictures", "topk=3", "output_dir=whole")
    assert "or the" not in outcome.out


@pytest.mark.parametrize("name", ["IMG (1), a=b.png", "a,b.png", "[1].png", "1e3", "it's.png", 'a"b.png'])
def test_any_name_of_a_file(command, run_folder, tmp_path, name):
    os.rename(tmp_path / "pictures" / "00.png", tmp_path / name)
    outcome = command("predict.py", CKPT, f"images={name}", "output_dir=out")
    assert (outcome.code, outcome.err) == (0, "")
    assert [row["file"] for row in rows_of(tmp_path / "out" / "predictions.csv")] == [name]


def test_a_list_of_files_and_patterns(command, run_folder, tmp_path):
    outcome = command("predict.py", CKPT, "images=[pictures/03.png,pictures/1*.png,pictures/01.png]", "output_dir=out")
    assert outcome.code == 0
    expected = ["pictures/03.png", *(f"pictures/1{number}.png" for number in range(10)), "pictures/01.png"]
    assert [row["file"] for row in rows_of(tmp_path / "out" / "predictions.csv")] == expected


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["images=pictures"], "ckpt=PATH is missing: a checkpoint, such as ckpt=logs/"),
        ([CKPT], "images has no value: set it with images=..."),
        ([CKPT, "images=nix*.png"], "images=nix*.png: the pattern matches no file"),
        ([CKPT, "images=a.png,b.png"], "images=a.png,b.png: several are given as a list, images=[a.png,b.png]; add -m"),
        ([CKPT, "images=[]"], "images must be a file, a folder, a pattern or a list of these"),
        ([CKPT, "images=[[a.png]]"], "images must be a file, a folder, a pattern or a list of these"),
        ([CKPT, "images="], "images= is empty"),
        ([CKPT, "images=empty"], "images=empty is a folder without images"),
        (["ckpt=nix.ckpt", "images=pictures"], "there is no file nix.ckpt"),
        (["ckpt=pictures/00.png", "images=pictures"], "pictures/00.png is not a checkpoint"),
        ([CKPT, "images=pictures", "topk=0"], "topk must be at least 1, got 0"),
        (
            [CKPT, "images=pictures", "tta=3"],
            "tta must be 0 (none), 1 (mirror images) or 2 (mirrored and translated), or",
        ),
        ([CKPT, "images=pictures", "accelerator=abacus"], "accelerator=abacus precision=null: "),
        ([CKPT, "images=pictures", "save_prob=true"], "there is no key save_prob: did you mean save_probs?"),
        (
            [CKPT, "images=pictures", "trainer.accelerator=cpu"],
            "trainer.accelerator=cpu: there is no trainer: did you mean accelerator?",
        ),
    ],
)
def test_what_is_refused(command, run_folder, tmp_path, typed, message):
    (tmp_path / "empty").mkdir()
    before = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert message in command("predict.py", *typed).refusal
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == before
    assert not list(run_folder.glob("predict/*"))


def test_several_checkpoints(command, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "other")
    outcome = command("predict.py", "-m", f"{CKPT},other/checkpoints/last.ckpt", "images=pictures")
    assert outcome.code == 0, outcome.err
    assert [len(list((tmp_path / name / "predict").iterdir())) for name in ("run", "other")] == [1, 1]


def test_from_python(run_folder, tmp_path):
    cfg = compose(f"ckpt={run_folder}/checkpoints/last.ckpt", f"images={tmp_path}/pictures", config_name="predict")
    found = predict(cfg)
    assert found["num_images"] == 20
    assert found["output_dir"].startswith(str(run_folder / "predict"))


def test_evaluate_names_the_files_of_a_folder(command, tmp_path):
    rng = np.random.default_rng(0)
    for split, num in (("train", 6), ("test", 3)):
        for label, level in (("dark", 40), ("light", 210)):
            folder = tmp_path / "photos" / split / label / "more"
            folder.mkdir(parents=True)
            for number in range(num):
                pixels = rng.integers(level, level + 40, (40, 50, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    options = ("data=folder", "data.root=photos", "data.batch_size=4", "output_dir=run")
    assert command("train.py", *FAST, *BARE, *options).code == 0
    assert command("evaluate.py", CKPT).code == 0
    evaluated = rows_of(tmp_path / "run" / "evaluate" / "last" / "predictions.csv")
    paths = [f"test/{label}/more/{number}.png" for label in ("dark", "light") for number in range(3)]
    assert [row["path"] for row in evaluated] == paths
    assert command("predict.py", CKPT, "images=photos/test", "output_dir=out").code == 0
    predicted = {row["file"]: row for row in rows_of(tmp_path / "out" / "predictions.csv")}
    for row in evaluated:
        answer = predicted[f"photos/{row['path']}"]
        assert answer["class"] == row["pred"]
        assert float(answer["probability"]) == pytest.approx(float(row["confidence"]), abs=2e-6)
