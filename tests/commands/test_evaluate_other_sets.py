"""evaluate.py on other test sets: exactly as on the data themselves; what is refused is refused at once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BARE, CLASSES, FAST, TINY, TinyCIFAR10, save_checkpoint
from known_sets import write_corrupted, write_new
from PIL import Image

from cifar_lightning.commands.evaluate import evaluate
from cifar_lightning.config.schema import compose

LABELS = [i % 10 for i in range(20)]


@pytest.fixture
def pixels(tiny_root) -> np.ndarray:
    return TinyCIFAR10(tiny_root, train=False).data


@pytest.fixture
def root(tmp_path, tiny_root) -> Path:
    """A folder of the data beside which other sets can be put."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "cifar-10-batches-py").symlink_to(tiny_root / "cifar-10-batches-py")
    return folder


@pytest.fixture
def as_folder(tmp_path, pixels) -> Path:
    """The test images as files."""
    for i, image in enumerate(pixels):
        path = tmp_path / "photos" / CLASSES[LABELS[i]] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "photos"


@pytest.fixture
def ckpt(tmp_path) -> str:
    """A checkpoint in the folder of a run."""
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    checkpoint = torch.load(save_checkpoint(path, name="tutorial"), weights_only=True)
    checkpoint["settings"]["data"] = {"name": "cifar10", "root": "data", "dataset": {"_target_": "TinyCIFAR10"}}
    torch.save(checkpoint, path)
    return f"ckpt={path}"


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_the_test_images_as_another_set_have_exactly_their_accuracy(
    command, ckpt, tmp_path, root, as_folder, pixels, precision
):
    """In every precision that the Trainer computes in, with images from files, from a mapped array and corrupted."""
    write_new(root, "v6", pixels, LABELS)
    write_corrupted(root, {"fog": np.tile(pixels, (5, 1, 1, 1))}, LABELS)
    given = (f"data.root={root}", TINY, f"other_sets=[auto,{as_folder}]", "corruptions=true")
    outcome = command(
        "evaluate.py", ckpt, *given, f"trainer.precision={precision}", "output_dir=out", "data.eval_batch_size=8"
    )
    assert outcome.code == 0, outcome.err
    found = metrics(tmp_path / "out")
    by_name = {row["name"]: row for row in found["other_sets"]}
    assert len(by_name) == 3 + 13
    for name in ("CIFAR-10.1 v6", "CIFAR-10-C fog"):
        assert (by_name[name]["acc"], by_name[name]["drop"]) == (found["test/acc"], 0)
        assert by_name[name]["loss"] == pytest.approx(found["test/loss"], abs=1e-12)
    photos = by_name[str(as_folder)]  # in another order, and so in other batches
    assert photos["acc"] == found["test/acc"]
    assert photos["loss"] == pytest.approx(found["test/loss"], rel=1e-3 if "bf16" in precision else 1e-5)
    assert "CIFAR-10-C, mean of 1" not in by_name
    assert "corruptions, mean of 12" in outcome.out
    assert "this project's own corruptions, which are not CIFAR-10-C" in outcome.out


def test_figures_of_the_data_do_not_depend_on_other_sets(command, ckpt, tmp_path, root, pixels):
    for folder in ("plain", "more"):
        outcome = command("evaluate.py", ckpt, f"data.root={root}", TINY, "tta=1", f"output_dir={folder}")
        assert outcome.code == 0, outcome.err
        write_new(root, "v4", pixels[:5], LABELS[:5])
    plain, more = metrics(tmp_path / "plain"), metrics(tmp_path / "more")
    assert "other_sets" not in plain
    (row,) = more["other_sets"]
    assert (row["name"], row["num_images"]) == ("CIFAR-10.1 v4", 5)
    assert all(more[name] == value for name, value in plain.items() if name.startswith(("test/", "num_")))
    again = command("evaluate.py", ckpt, f"data.root={root}", TINY, "other_sets=null", "output_dir=none")
    assert again.code == 0
    assert "other_sets" not in metrics(tmp_path / "none")


def test_nothing_is_lost(command, ckpt, tmp_path, root, pixels):
    """Other sets and corruptions have folders of their own; a folder gains sets, and does not lose them."""
    given = (f"data.root={root}", TINY)
    assert command("evaluate.py", ckpt, *given).code == 0
    write_new(root, "v6", pixels, LABELS)
    folder = next((tmp_path / "run" / "evaluate").iterdir())
    assert command("evaluate.py", ckpt, *given).code == 0
    assert len(metrics(folder)["other_sets"]) == 1
    assert command("evaluate.py", ckpt, *given, "corruptions=true").code == 0
    assert command("evaluate.py", ckpt, *given, "other_sets=null").code == 0
    assert len(list((tmp_path / "run" / "evaluate").iterdir())) == 3
    for path in root.glob("cifar10.1*"):
        path.unlink()
    outcome = command("evaluate.py", ckpt, *given)
    assert outcome.refusal.endswith("CIFAR-10.1 v6 as it was: name another folder, so that neither is lost")
    assert len(metrics(folder)["other_sets"]) == 1


def test_a_failure_in_other_sets_leaves_the_figures_of_the_test_images(command, ckpt, tmp_path, root, monkeypatch):
    given = (ckpt, f"data.root={root}", TINY)

    def fails(*args: object, **options: object) -> None:
        raise MemoryError("too many images")

    with monkeypatch.context() as patched:
        patched.setattr("cifar_lightning.commands.evaluate.drops", fails)
        assert command("evaluate.py", *given).code != 0
    folder = next((tmp_path / "run" / "evaluate").iterdir())
    assert "other_sets" not in metrics(folder)
    assert metrics(folder)["num_test_images"] == (folder / "predictions.csv").read_text().count("\n") - 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("[nowhere]", "other_sets: nowhere is neither a folder nor one of auto, CIFAR-10.1, CIFAR-10-C, CIFAR-10H, "),
        ("CIFAR-10H", "other_sets: CIFAR-10H is not in data.root="),
        ("[pets]", "other_sets: pets has the classes goat, which are not among airplane, automobile"),
        ("[[a]]", "other_sets must be auto, null, the name of a set, a folder of images or a list of these, as in"),
        ("{a:1}", "other_sets must be auto, null, the name of a set"),
        ("auto", "other_sets: "),
    ],
)
def test_refused_before_anything_is_evaluated(command, ckpt, tmp_path, root, asked, message):
    (tmp_path / "pets" / "goat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "pets" / "goat" / "0.png")
    if asked == "auto":
        (root / "cifar10.1_v6_data.npy").write_bytes(b"<html>")
    outcome = command("evaluate.py", ckpt, f"data.root={root}", TINY, f"other_sets={asked}", "output_dir=out")
    assert outcome.refusal.startswith(message)
    assert not (tmp_path / "out" / "metrics.json").exists()
    assert "model  " not in outcome.out


def test_a_folder_of_ones_own_classes(command, tmp_path):
    rng = np.random.default_rng(0)
    for split, num in {"train": 4, "test": 3, "later": 2}.items():
        for name in ("cat", "a goat"):
            for i in range(num):
                path = tmp_path / "pets" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(path)
    own = ("data=folder", f"data.root={tmp_path / 'pets'}", "data.image_size=34", "model=speedrun", "optimizer.lr=0.01")
    assert command("train.py", *FAST, *BARE, *own, f"output_dir={tmp_path / 'run'}").code == 0
    given = (f"ckpt={tmp_path / 'run'}/checkpoints/last.ckpt", "other_sets=['pets','pets/later']", "output_dir=out")
    outcome = command("evaluate.py", *given, "corruptions=true")
    assert outcome.code == 0, outcome.err
    found = metrics(tmp_path / "out")
    same, later, *_ = found["other_sets"]
    assert (same["name"], same["num_images"], same["acc"]) == ("pets", 6, found["test/acc"])
    assert (later["name"], later["num_images"], later["paired"]) == ("pets/later", 4, False)


@pytest.mark.parametrize("name", ["last.onnx", "last.pt2"])
def test_exported_files(exported_run, tmp_path, root, pixels, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_new(root, "v6", pixels, LABELS)
    given = ("trainer.accelerator=cpu", f"data.root={root}", TINY, "output_dir=out", "corruptions=true")
    path = next(exported_run.rglob(name))
    found = evaluate(compose(f"ckpt={path}", *given, config_name="evaluate"))
    new, mean, *_ = found["other_sets"]
    assert (new["acc"], mean["num_images"]) == (found["test/acc"], 20)


@pytest.mark.gpu
def test_on_a_gpu(ckpt, tmp_path, root, as_folder):
    both = [
        evaluate(
            compose(
                *(ckpt, f"trainer.accelerator={kind}", f"data.root={root}", TINY, "corruptions=true"),
                *(f"other_sets=[{as_folder}]", f"output_dir={tmp_path / kind}"),
                config_name="evaluate",
            )
        )["other_sets"]
        for kind in ("cpu", "gpu")
    ]
    for one, other in zip(*both, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
    assert torch.cuda.is_available()
