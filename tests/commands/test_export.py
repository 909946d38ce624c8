"""export.py: what is written is checked first, and is used in the checkpoint's place."""

import builtins
import csv
import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import FAST, SMALL, TINY, save_checkpoint
from PIL import Image

import cifar_lightning
from cifar_lightning.checkpoint.format import read
from cifar_lightning.commands.export import export
from cifar_lightning.commands.train import train
from cifar_lightning.config import schema
from cifar_lightning.errors import RunError
from cifar_lightning.export import FORMATS, state_dict


def files_in(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"}


@pytest.mark.parametrize("name", ["last.onnx", "last.pt2"])
def test_evaluate_and_predict_take_an_exported_file(command, exported_run, tmp_path, name):
    checkpoint = [f"ckpt={exported_run}/checkpoints/last.ckpt", "trainer.precision=32-true"]
    for place, arguments in (("own", checkpoint), ("exported", [f"ckpt={exported_run}/export/{name}"])):
        outcome = command("evaluate.py", *arguments, TINY, f"output_dir={place}", "tta=1")
        assert (outcome.code, outcome.err) == (0, "")
    own, exported = (json.loads((tmp_path / place / "metrics.json").read_text()) for place in ("own", "exported"))
    for key in ("test/acc", "test/acc_tta", "num_test_images", "test/class_acc", "fingerprint", "name", "seed"):
        assert exported[key] == own[key]
    assert exported["temperature"] == own["temperature"] > 0
    assert exported["test/loss"] == pytest.approx(own["test/loss"], rel=1e-6)
    assert exported["precision"] == "32-true"  # the run computed in bf16-mixed

    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / f"{number}.png")
    rows = []
    for place, ckpt in (("a", "checkpoints/last.ckpt"), ("b", f"export/{name}")):
        arguments = [f"ckpt={exported_run}/{ckpt}", "images=*.png", f"output_dir={place}", "precision=32-true"]
        assert command("predict.py", *arguments).code == 0
        with (tmp_path / place / "predictions.csv").open(newline="") as file:
            rows.append([(row["file"], row["class"], float(row["probability"])) for row in csv.DictReader(file)])
    assert [row[:2] for row in rows[0]] == [row[:2] for row in rows[1]]
    assert [row[2] for row in rows[0]] == pytest.approx([row[2] for row in rows[1]], abs=2e-6)
    assert not (exported_run / "evaluate").exists()


def test_answers_of_an_exported_file_stand_in_the_run_s_folder(command, exported_run, tmp_path):
    shutil.copytree(exported_run, tmp_path / "run")
    assert command("evaluate.py", "ckpt=run/export/last.onnx", TINY).code == 0
    assert (tmp_path / "run" / "evaluate" / "last.onnx" / "metrics.json").exists()
    refusals = {
        "trainer.precision=bf16-mixed": "an exported file computes in float32, precision 32-true, got bf16-mixed",
        "compile=true": "an exported file is not compiled: compile must be false, got True",
    }
    for argument, refusal in refusals.items():
        assert command("evaluate.py", "ckpt=run/export/last.pt2", TINY, argument, "output_dir=x").refusal == refusal
    outcome = command("export.py", "ckpt=run/export/last.onnx")
    assert outcome.refusal == "ckpt=run/export/last.onnx is exported already: give the checkpoint that it was made from"
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    outcome = command("predict.py", "ckpt=run/export/last.pt2", "images=a.png", "precision=bf16-mixed")
    assert outcome.refusal == "an exported file computes in float32, precision 32-true, got bf16-mixed"


def test_images_of_another_size_are_refused(command, exported_run, tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in read(exported_run / "checkpoints" / "last.ckpt")["settings"]["classes"]:
            (tmp_path / "own" / split / name).mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "own" / split / name / f"{number}.png")
    arguments = ("data=folder", "data.root=own", "data.image_size=16", "output_dir=x")
    outcome = command("evaluate.py", f"ckpt={exported_run}/export/last.pt2", *arguments)
    assert outcome.refusal == "the exported file takes images of 3x32x32, got 3x16x16: evaluate its checkpoint"


def test_what_was_checked_is_recorded(exported_run):
    records = json.loads((exported_run / "export" / "export.json").read_text())
    assert set(records) == {"last.onnx", "last.pt2"}
    for name, format in (("last.onnx", "onnx"), ("last.pt2", "torch_export")):
        record = records[name]
        assert record["format"] == format
        assert record["check"]["num_images"] == 256
        assert record["check"]["batch_sizes"] == [1, 7, 248]
        assert record["check"]["num_disagreements"] == 0
        assert record["check"]["max_difference"] <= record["check"]["tolerance"]
        assert {"torch", "lightning", *FORMATS[format].packages} <= set(record["versions"])
        assert {"commit", "dirty", "overrides", "ckpt", "seed"} <= set(record)
    assert files_in(exported_run / "export") == {"last.onnx", "last.pt2", "export.json", ".cifar-lightning.lock"}


def test_the_console_says_what_was_checked_and_how_it_is_used(command, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    ckpt = save_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", dtype=torch.bfloat16, name="tutorial")
    outcome = command("export.py", f"ckpt={ckpt}", "format=state_dict")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert "note      the checkpoint's weights are bfloat16; the export has them in float32" in lines
    assert any(line.startswith("check     256 images in batches of 1, 7, 248: largest diff") for line in lines)
    assert any(line.startswith("wrote     ") and "/export/last.pth, " in line for line in lines)
    names = {"images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8)}
    exec("\n".join(lines[lines.index("use       in Python:") + 1 :]), names)
    assert names["logits"].shape == (2, 10)
    assert any(line.startswith("net.load_state_dict(torch.load(") for line in lines)


def test_a_network_that_is_not_read_again_is_exported_for_others(command, tmp_path):
    save_checkpoint(tmp_path / "last.ckpt", name="torchvision", arch="shufflenet_v2_x0_5")
    outcome = command("export.py", "ckpt=last.ckpt", "format=torch_export", "output_dir=out")
    assert (outcome.code, outcome.err) == (0, "")
    assert "evaluate.py and predict.py do not read it: it uses 'torch.ops.aten.sym_size.int'" in outcome.out
    assert (tmp_path / "out" / "last.pt2").exists()
    message = "out/last.pt2 is no file that export.py wrote: it uses 'torch.ops.aten.sym_size.int', which is not among"
    assert message in command("predict.py", "ckpt=out/last.pt2", "images=last.ckpt").refusal


def test_an_export_goes_through_no_link_and_records_only_what_is_there(command, tmp_path):
    save_checkpoint(tmp_path / "last.ckpt", name="tutorial")
    (tmp_path / "out").mkdir()
    (tmp_path / "victim").mkdir()
    (tmp_path / "out" / "last-safetensors").symlink_to(tmp_path / "victim")
    outcome = command("export.py", "ckpt=last.ckpt", "format=safetensors", "output_dir=out")
    assert outcome.code == 1
    assert "last-safetensors is a link: there must be a plain folder or none" in outcome.err
    (tmp_path / "out" / "last.pth").mkdir()
    outcome = command("export.py", "ckpt=last.ckpt", "format=state_dict", "output_dir=out")
    assert outcome.code == 1
    assert "a folder is in the place of last.pth" in outcome.err
    assert os.listdir(tmp_path / "victim") == []
    assert not (tmp_path / "out" / "export.json").exists()


def test_a_sweep_exports_to_several_formats(command, tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    save_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", name="tutorial")
    outcome = command("export.py", "-m", "ckpt=run/checkpoints/last.ckpt", "format=state_dict,safetensors")
    assert outcome.code == 0
    records = json.loads((tmp_path / "run" / "export" / "export.json").read_text())
    assert set(records) == {"last.pth", "last-safetensors"}


@pytest.mark.parametrize("run", ["plain", "compiled"])
def test_a_checkpoint_of_half_precision_or_compiled(compose, tmp_path, monkeypatch, run):
    precision = "bf16-true" if run == "plain" else "bf16-mixed"
    if run == "compiled":  # compiling takes half a minute; what a checkpoint knows of it is its setting
        monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: None)
    train(compose(*FAST, *SMALL, f"trainer.precision={precision}", f"compile={run == 'compiled'}"))
    arguments = (f"ckpt={tmp_path}/run/checkpoints/last.ckpt", "format=torch_export", f"output_dir={tmp_path}/out")
    found = export(schema.compose(*arguments, config_name="export"))
    assert found["weights_type"] == ("bfloat16" if run == "plain" else "float32")
    predictor = cifar_lightning.load(tmp_path / "out" / "last.pt2", accelerator="cpu")
    assert predictor.precision == "32-true"


def test_a_file_that_disagrees_is_not_left_behind(command, tmp_path, monkeypatch):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    save_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt", name="tutorial")
    arguments = ("export.py", "ckpt=run/checkpoints/last.ckpt", "format=state_dict")
    assert command(*arguments).code == 0
    folder = tmp_path / "run" / "export"
    before = {name: (folder / name).read_bytes() for name in files_in(folder)}

    original = state_dict.rebuilt

    def wrong(source, weights):
        weights["conv1.weight"][0, 0, 0, 0] += 0.01
        return original(source, weights)

    monkeypatch.setattr(state_dict, "rebuilt", wrong)
    outcome = command(*arguments)
    assert outcome.code == 1
    expected = (
        "error: the exported file does not compute what run/checkpoints/last.ckpt does, and is removed: 256 images"
    )
    assert outcome.err.startswith(expected)
    assert outcome.err.count("\n") == 1
    assert {name: (folder / name).read_bytes() for name in files_in(folder)} == before
    shutil.rmtree(folder)
    assert command(*arguments).code == 1
    assert files_in(folder) == {".cifar-lightning.lock"}

    def broken(source, weights):
        raise KeyError("conv1")

    monkeypatch.setattr(state_dict, "rebuilt", broken)
    assert command(*arguments).err.startswith(
        "error: the exported file cannot be opened again, and is removed: 'conv1'"
    )
    assert files_in(folder) == {".cifar-lightning.lock"}


@pytest.mark.parametrize(
    ("format", "library"), [("onnx", "onnxscript"), ("onnx", "onnx"), ("safetensors", "safetensors")]
)
def test_a_missing_library_is_one_line(command, tmp_path, monkeypatch, format, library):
    save_checkpoint(tmp_path / "last.ckpt", name="tutorial")
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == library:
            raise ModuleNotFoundError(f"No module named {library!r}", name=library)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    outcome = command("export.py", "ckpt=last.ckpt", f"format={format}", "output_dir=out")
    assert outcome.refusal == f"{library} is not installed: pip install -e '.[export]'"
    (tmp_path / "last.onnx").write_bytes(b"anything")
    if library == "onnx":
        outcome = command("predict.py", "ckpt=last.onnx", "images=last.ckpt", "output_dir=out")
        assert outcome.refusal == "onnx is not installed: pip install -e '.[export]'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("format=onnx",), "ckpt=PATH is missing: a checkpoint, such as"),
        (("ckpt=other.ckpt",), "there is no file other.ckpt"),
        (("ckpt=last.ckpt", "format=onxx"), "format=onxx is unknown: did you mean onnx?"),
        (
            ("ckpt=last.ckpt", "format=tflite"),
            "format=tflite is unknown; allowed: onnx, safetensors, state_dict, torch_e",
        ),
        (("ckpt=last.ckpt", "fromat=onnx"), "fromat=onnx: there is no key fromat: did you mean format?"),
    ],
)
def test_export_refuses(command, tmp_path, arguments, message):
    save_checkpoint(tmp_path / "last.ckpt", name="tutorial")
    assert command("export.py", *arguments).refusal.startswith(message)


def test_an_exporter_that_fails_is_one_line(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "last.ckpt", name="tutorial")
    monkeypatch.setattr(torch.export, "export", lambda *args, **options: 1 / 0)
    arguments = (f"ckpt={tmp_path}/last.ckpt", "format=torch_export", f"output_dir={tmp_path}/out")
    with pytest.raises(RunError, match="format=torch_export cannot express this network: division by zero"):
        export(schema.compose(*arguments, config_name="export"))
    assert files_in(tmp_path / "out") == set()
