import io
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CLASSES as REAL_CLASSES
from conftest import SMALL
from lightning.pytorch.callbacks import Callback

from cifar_lightning import models
from cifar_lightning.checkpoint.format import FORMAT_VERSION, description, read, read_state
from cifar_lightning.checkpoint.format import described as as_described
from cifar_lightning.checkpoint.load import load_classifier
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.commands.train import train
from cifar_lightning.config.resolve import resolve
from cifar_lightning.data.arrays import to_arrays
from cifar_lightning.data.checks import MAX_CLASSES, MAX_NAME_BYTES
from cifar_lightning.errors import UserError

CLASSES = tuple("abcdefghij")


def described(**model) -> dict:
    return {
        "name": "tutorial",
        "seed": 0,
        "tta": 0,
        "num_threads": None,
        "compile": False,
        "classes": list(CLASSES),
        "image_size": [32, 32],
        "fingerprint": {"train": "0" * 32, "test": "1" * 32, "val": "2" * 32},
        "model": {"name": "tutorial", "num_classes": 10, "in_channels": 3} | model,
        "normalize": {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]},
        "data": {"name": "synthetic"},
        "trainer": {"precision": "32-true"},
    }


@pytest.fixture
def classifier() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(
        models.build("tutorial", num_classes=10, in_channels=3), mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0]
    )


@pytest.fixture
def contents(classifier) -> dict:
    return {"state_dict": classifier.state_dict(), "format_version": FORMAT_VERSION, "settings": described()}


@pytest.fixture
def path(contents, tmp_path):
    torch.save(contents, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_a_checkpoint_rebuilds_its_classifier(path, classifier):
    loaded, checkpoint = load_classifier(path)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(loaded(images), classifier(images))
    assert checkpoint["settings"]["classes"] == list(CLASSES)
    assert not loaded.training
    assert loaded.temperature is None


@pytest.mark.parametrize("temperature", [None, 0.01, 2.5, 100.0])
def test_a_checkpoint_may_have_a_temperature(contents, path, classifier, temperature):
    torch.save(contents | {"temperature": temperature}, path)
    loaded, _ = load_classifier(path)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    assert loaded.temperature == temperature
    assert torch.equal(loaded(images), classifier(images))  # logits are without it


# What is refused


def test_missing_file_lists_its_neighbours(path):
    with pytest.raises(UserError, match=r"there is no file .*best\.ckpt; beside it: last\.ckpt$"):
        read(path.with_name("best.ckpt"))


def test_folder_lists_what_it_holds(path):
    with pytest.raises(UserError, match=r"is a folder; it holds .*last\.ckpt"):
        read(path.parent)


@pytest.mark.parametrize("address", ["http://example.org/a.ckpt", "s3://bucket/a.ckpt", "file:///a.ckpt"])
def test_addresses(address):
    with pytest.raises(UserError, match="is an address: download the file first"):
        read(address)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"hello", "not written by torch.save"),
        (b"<html>captive portal</html>", "not written by torch.save"),
        (bytes(1000), "not written by torch.save"),
        (pickle.dumps({"state_dict": {}}), "not written by torch.save"),
        (b"PK\x03\x04 and then nothing", "truncated or damaged"),
    ],
)
def test_files_that_are_something_else(content, message, tmp_path):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "x.ckpt")


def test_beside_a_damaged_checkpoint_the_best_is_named(path):
    path.write_bytes(b"PK half")
    with pytest.raises(UserError, match=r"truncated or damaged: File is not a zip file$"):
        read_state(path)
    path.with_name("best.ckpt").touch()
    advice = r"truncated or damaged: .*; to resume from the best validation, rename best\.ckpt beside it to last\.ckpt$"
    with pytest.raises(UserError, match=advice):
        read_state(path)


@pytest.mark.parametrize("keep", [10, 0.5, -1])
def test_truncated(path, keep):
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))] if isinstance(keep, float) else content[:keep])
    with pytest.raises(UserError, match="truncated or damaged"):
        read(path)


def test_a_flipped_byte_is_found_by_its_checksum(path):
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content[largest.header_offset + 4096] ^= 1
    path.write_bytes(bytes(content))
    assert isinstance(torch.load(path, weights_only=True), dict)  # torch itself does not notice
    with pytest.raises(UserError, match=f"damaged: wrong checksum in {largest.filename}"):
        read(path)


def test_encryption(tmp_path):
    file = tmp_path / "x.ckpt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", b"secret")
    content = bytearray(file.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1  # the flag that says encrypted
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"truncated or damaged: .*encrypted"):
        read(file)


def test_names_that_no_file_can_have(tmp_path):
    with pytest.raises(UserError, match=r" cannot be read: .*name too long"):
        read(tmp_path / ("x" * 300))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["state_dict"], "not a checkpoint of this project: format_version is missing"),
        (lambda c: [c], "it holds a list, not a dictionary"),
        (lambda c: c | {"settings": "x"}, "settings is no dict"),
        (lambda c: c | {"settings": {}}, r"settings\.name must be text, got None"),
        (lambda c: c | {"format_version": 99}, "format 99, and this version of the project reads format 4: update"),
        (
            lambda c: c | {"format_version": 1},
            r"format 1, which cifar-lightning 0\.1 reads; this version reads format 4",
        ),
        (lambda c: c | {"settings": described() | {"classes": [1, 2]}}, r"settings\.classes must be a list, each item"),
        (lambda c: c | {"settings": described(x=torch.ones(2))}, r"settings\.model\.x is a Tensor"),
        (lambda c: c | {"settings": described() | {"tta": {}}}, r"settings\.tta must be a whole number, got \{\}"),
        (
            lambda c: c | {"settings": described() | {"num_threads": "four"}},
            r"settings\.num_threads must be a whole number or null, got 'four'",
        ),
        (
            lambda c: c | {"settings": described() | {"image_size": [32]}},
            r"settings\.image_size must be a list, each item a whole number, got \[32\]",
        ),
        (
            lambda c: c | {"settings": described() | {"image_size": [32, 10**6]}},
            r"settings\.image_size must be numbers in \[1, 4096\], got \[32, 1000000\]",
        ),
        (
            lambda c: c | {"state_dict": c["state_dict"] | {"net.fc1.bias": torch.full((120,), torch.nan)}},
            r"net\.fc1\.bias holds numbers that are not finite, which no run writes: take another file",
        ),
        (
            lambda c: c | {"settings": described(x=[{"y": "${oc.env:HOME}"}])},
            r"settings\.model\.x\.0\.y holds an interpolation",
        ),
        *(
            (
                lambda c, value=value: c | {"temperature": value},
                rf"this project: temperature must be in \[0\.01, 100\], got {got}$",
            )
            for value, got in [
                *((0.0, r"0\.0"), (-1.0, r"-1\.0"), (1e9, r"1000000000\.0"), (float("nan"), "nan"), (1, "a int")),
                *((float("inf"), "inf"), (True, "a bool"), ("1", "a str"), ([1.0], "a list")),
                *((torch.tensor(1.0), "a Tensor"), ({}, "a dict")),
            ]
        ),
    ],
)
def test_foreign_contents(contents, path, change, message):
    torch.save(change(contents), path)
    with pytest.raises(UserError, match=message):
        read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c | {"settings": described(name="os.system")}, "name must be one of tutorial"),
        (lambda c: c | {"settings": described(num_classes=10**9)}, "num_classes must be a whole number"),
        (lambda c: c | {"settings": described(_target_="os.system")}, "_target_ is not an argument of tutorial"),
        (lambda c: c | {"settings": described(num_classes=7)}, "size mismatch for net.fc3.weight"),
        (lambda c: c | {"settings": described() | {"classes": ["a", "b"]}}, "2 class names for 10 outputs"),
    ],
)
def test_descriptions_that_cannot_be_built(contents, path, change, message):
    torch.save(change(contents), path)
    with pytest.raises(UserError, match=message):
        load_classifier(path)


@pytest.mark.parametrize("variable", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_code_in_a_file_never_runs(contents, path, tmp_path, monkeypatch, variable):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "sentinel"), "w"))

    if variable:
        monkeypatch.setenv(variable, "1")
    torch.save(contents | {"extra": Payload()}, path)
    with pytest.raises(UserError, match="holds objects beyond tensors and plain values"):
        read(path)
    assert not (tmp_path / "sentinel").exists()


def test_settings_are_described_without_the_places_of_classes(compose):
    settings = resolve(compose("callbacks=lookahead", "freeze=[[conv1,0.5]]"))
    found = as_described(settings)
    assert found["optimizer"] == {
        "_target_": "sgd",
        "lr": 0.001,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "nesterov": False,
    }
    assert found["callbacks"]["lookahead"]["_target_"] == "Lookahead"
    assert found["freeze"] == [["conv1", 0.5]]
    assert found["name"] == "tutorial"


class Weights(Callback):
    """As Lightning's ModelCheckpoint(save_weights_only=True) saves."""

    def on_train_end(self, trainer, pl_module):
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "weights.ckpt", weights_only=True)


# A writer never writes what its reader refuses


def test_as_many_names_of_classes_as_data_may_have_are_written_and_read(contents, tmp_path):
    names = [f"{number:05}${{oc.env:HOME}}".ljust(MAX_NAME_BYTES // MAX_CLASSES) for number in range(MAX_CLASSES)]
    data = SimpleNamespace(data=np.zeros((1, 1, 1, 3), np.uint8), targets=[0], classes=names)
    assert to_arrays(data).classes == tuple(names)
    settings = {**contents["settings"], "classes": names, "name": "x" * 400_000}
    torch.save(contents | {"settings": settings}, tmp_path / "large.ckpt")
    assert read(tmp_path / "large.ckpt")["settings"]["classes"] == names


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"data": {"root": "${oc.env:HOME}"}},
            r"data\.root holds an interpolation, '\$\{oc.env:HOME\}'; no checkpoint can",
        ),
        ({"name": "x" * 3_000_000}, r"the settings take 3,\d+,\d+ bytes, and 2,500,000 are allowed; no checkpoint can"),
        (
            {"model": {"name": "x", "widths": [0] * 100_000}},
            r"it holds more than 100,000 values, .*; no checkpoint can",
        ),
    ],
)
def test_settings_that_no_checkpoint_can_hold_are_refused_before_training(compose, changed, message):
    facts = {"num_threads": 1, "classes": ("a",), "image_size": (32, 32), "fingerprint": {}}
    settings = replace(resolve(compose()), **facts, **changed)
    with pytest.raises(UserError, match=message):
        description(settings)


def test_a_file_of_weights_alone_describes_itself(compose, tmp_path):
    train(compose(*SMALL, "callbacks={weights:{_target_:test_format.Weights}}"))
    _, checkpoint = load_classifier(tmp_path / "run" / "weights.ckpt")
    assert "optimizer_states" not in checkpoint
    assert checkpoint["settings"]["classes"] == list(REAL_CLASSES)
    with pytest.raises(UserError, match=r"weights\.ckpt cannot be resumed from: it holds no "):
        read_state(tmp_path / "run" / "weights.ckpt")
