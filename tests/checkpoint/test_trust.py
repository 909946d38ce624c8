"""A zoo of hostile and broken files at the gate: each is refused in one line, at once, and nothing in it ever runs."""

import io
import os
import pickle
import re
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from conftest import SMALL, TINY, after_each_save, last

from cifar_lightning.checkpoint.format import read_state
from cifar_lightning.checkpoint.load import load_classifier
from cifar_lightning.commands.train import train
from cifar_lightning.config import schema
from cifar_lightning.errors import UserError


class Runs:
    """Pickled, it asks for a call when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def saved(contents) -> bytes:
    buffer = io.BytesIO()
    torch.save(contents, buffer)
    return buffer.getvalue()


def rezipped(content: bytes, change, compression=zipfile.ZIP_STORED) -> bytes:
    """A zip archive with its members changed, and right checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        members = {info.filename: old.read(info) for info in old.infolist()}
        for name, member in change(members).items():
            new.writestr(name, member)
    return buffer.getvalue()


def flipped(content: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        member = next(info for info in archive.infolist() if info.filename.endswith(name))
    position = member.header_offset + 30 + len(member.filename) + member.file_size // 2
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def deep_config(members, levels: int):
    """A pickle with a config that no pickler could write: lists in lists in lists."""

    def text(value: str) -> bytes:
        return b"X" + len(value).to_bytes(4, "little") + value.encode()

    def mapping(**values: bytes) -> bytes:
        return b"}" + b"".join(text(key) + value + b"s" for key, value in values.items())

    nested = b"]" * levels + b"a" * (levels - 1)
    sections = dict.fromkeys(("fingerprint", "normalize", "data", "trainer"), b"}")
    numbers = dict.fromkeys(("seed", "tta", "num_threads"), b"K\x01")
    lists = {"classes": b"]", "image_size": b"](K\x01K\x01e"}
    settings = mapping(name=text("x"), compile=b"\x89", model=mapping(x=nested), **lists, **numbers, **sections)
    top = mapping(format_version=b"K\x04", state_dict=b"}", settings=settings)
    return {name: b"\x80\x02" + top + b"." if name.endswith("data.pkl") else m for name, m in members.items()}


def with_settings(contents, **sections):
    settings = contents["settings"]
    return contents | {"settings": settings | {key: settings[key] | section for key, section in sections.items()}}


def with_state(contents, **tensors):
    return contents | {"state_dict": contents["state_dict"] | tensors}


def pickle_only(members):
    return {name: member for name, member in members.items() if not name.endswith("data.pkl")}


def payload_pickle(members, call):
    return {name: pickle.dumps(call) if name.endswith("data.pkl") else member for name, member in members.items()}


def shared(levels: int) -> list:
    nested: list = []
    for _ in range(levels):
        nested = [nested] * 10  # ten times as many to walk through, and one more to store
    return nested


def endless() -> list:
    nested: list = []
    nested.append(nested)
    return nested


def raw_pickle(members, content: bytes):
    return {name: content if name.endswith("data.pkl") else member for name, member in members.items()}


def huge_bytes(members):
    call = b"cbuiltins\nbytearray\n(L" + str(10**13).encode() + b"L\ntR."
    return raw_pickle(members, b"\x80\x02" + call)


# name -> (contents of a good checkpoint, the sentinel's path) -> bytes of the file
ZOO = {
    "empty": lambda c, s: b"",
    "text": lambda c, s: b"weights, honestly",
    "a captive portal's page": lambda c, s: b"<!DOCTYPE html><html>Sign in to the hotel's network</html>",
    "zeros": lambda c, s: bytes(10_000),
    "a picture": lambda c, s: b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a bare pickle": lambda c, s: pickle.dumps({"state_dict": {}}),
    "a bare pickle that calls": lambda c, s: pickle.dumps(Runs(os.mkdir, s)),
    "10 bytes": lambda c, s: saved(c)[:10],
    "half a file": lambda c, s: saved(c)[: len(saved(c)) // 2],
    "all but the last byte": lambda c, s: saved(c)[:-1],
    "a flipped byte in a tensor": lambda c, s: flipped(saved(c), "data/2"),
    "a flipped byte in the pickle": lambda c, s: flipped(saved(c), "data.pkl"),
    "a zip without a pickle": lambda c, s: rezipped(saved(c), pickle_only),
    "a zip of text": lambda c, s: rezipped(saved(c), lambda members: {"readme.txt": b"hello"}),
    "a compressed zip": lambda c, s: rezipped(saved(c), dict, zipfile.ZIP_DEFLATED),
    "a zip bomb": lambda c, s: rezipped(saved(c), lambda m: m | {"archive/bomb": bytes(10**8)}, zipfile.ZIP_DEFLATED),
    "a pickle that calls, in the zip": lambda c, s: rezipped(saved(c), lambda m: payload_pickle(m, Runs(os.mkdir, s))),
    "os.mkdir in a value": lambda c, s: saved(c | {"extra": Runs(os.mkdir, s)}),
    "eval in a value": lambda c, s: saved(c | {"extra": Runs(eval, f"open({s!r}, 'w')")}),
    "open in the config": lambda c, s: saved(with_settings(c, model={"name": Runs(open, s, "w")})),
    "a call among the weights": lambda c, s: saved(with_state(c, evil=Runs(open, s, "w"))),
    "torch.load in a value": lambda c, s: saved(c | {"extra": Runs(torch.load, s)}),
    "a path of pathlib": lambda c, s: saved(c | {"extra": Path(s)}),
    "a whole network": lambda c, s: saved(torch.nn.Linear(1, 1)),
    "_target_ in the model": lambda c, s: saved(with_settings(c, model={"_target_": "os.mkdir", "path": s})),
    "a model named os.mkdir": lambda c, s: saved(with_settings(c, model={"name": "os.mkdir"})),
    "an interpolation": lambda c, s: saved(with_settings(c, model={"name": "${oc.env:HOME}"})),
    "10**9 classes": lambda c, s: saved(with_settings(c, model={"num_classes": 10**9})),
    "-1 classes": lambda c, s: saved(with_settings(c, model={"num_classes": -1})),
    "a network of terabytes": lambda c, s: saved(with_settings(c, model={"name": "speedrun", "widths": [10**6] * 3})),
    "a network larger than its file": lambda c, s: saved(
        with_settings(c, model={"name": "speedrun", "widths": [4096] * 3})
    ),
    "10**6 widths": lambda c, s: saved(with_settings(c, model={"name": "speedrun", "widths": [64] * 10**6})),
    "a mean that is text": lambda c, s: saved(with_settings(c, normalize={"mean": "zero"})),
    "a std of zero": lambda c, s: saved(with_settings(c, normalize={"std": [0.0, 1.0, 1.0]})),
    "a deep config": lambda c, s: rezipped(saved(c), lambda members: deep_config(members, 5_000)),
    "bare weights": lambda c, s: saved(c["state_dict"]),
    "a list": lambda c, s: saved([c]),
    "without weights": lambda c, s: saved({key: value for key, value in c.items() if key != "state_dict"}),
    "without a format": lambda c, s: saved({key: value for key, value in c.items() if key != "format_version"}),
    "a newer format": lambda c, s: saved(c | {"format_version": 5}),
    "a format in words": lambda c, s: saved(c | {"format_version": "one"}),
    "classes that are numbers": lambda c, s: saved(c | {"settings": c["settings"] | {"classes": list(range(10))}}),
    "too few classes": lambda c, s: saved(c | {"settings": c["settings"] | {"classes": ["cat", "dog"]}}),
    "a missing weight": lambda c, s: saved(c | {"state_dict": OrderedDict(list(c["state_dict"].items())[:-1])}),
    "an unknown weight": lambda c, s: saved(with_state(c, more=torch.zeros(1))),
    "a weight of another shape": lambda c, s: saved(with_state(c, **{"net.fc3.bias": torch.zeros(11)})),
    "a weight of whole numbers": lambda c, s: saved(
        with_state(c, **{"net.fc3.bias": torch.zeros(10, dtype=torch.int64)})
    ),
    "a sparse weight": lambda c, s: saved(with_state(c, **{"net.fc3.bias": torch.zeros(10).to_sparse()})),
    "a weight that claims more than it holds": lambda c, s: saved(
        with_state(c, **{"net.fc1.weight": torch.zeros(1).expand(120, 400)})
    ),
    "a picture that claims gigabytes": lambda c, s: saved(c | {"extra": torch.zeros(1).expand(10**10)}),
    "lists of the same lists": lambda c, s: saved(c | {"extra": shared(30)}),
    "a list in itself": lambda c, s: saved(c | {"extra": endless()}),
    "keys that are no names": lambda c, s: saved(with_settings(c, model={None: 1})),
    "a bytearray of terabytes": lambda c, s: rezipped(saved(c), lambda m: huge_bytes(m)),
    "an unknown opcode": lambda c, s: rezipped(saved(c), lambda m: raw_pickle(m, b"\x80\x02\xff.")),
    "a pickle that pops nothing": lambda c, s: rezipped(saved(c), lambda m: raw_pickle(m, b"\x80\x02ss.")),
    "a number for a weight": lambda c, s: saved(with_state(c, **{"net.fc3.bias": 1.0})),
}


OVERRIDES = (*SMALL, TINY, "trainer.accelerator=cpu", "schedule=linear", "optimizer.momentum=0.9")


@pytest.fixture(scope="module")
def contents(tmp_path_factory, tiny_root):
    """A good checkpoint: that of a real run, after its first epoch."""
    folder = tmp_path_factory.mktemp("zoo") / "run"
    overrides = [*OVERRIDES, f"data.root={tiny_root}", f"output_dir={folder}"]
    cfg = schema.compose(*overrides)
    saves = []
    with pytest.MonkeyPatch.context() as patch:
        after_each_save(patch, lambda trainer, path: saves.append(last(folder)))
        train(cfg)
    return saves[0]


def test_the_good_one_passes(contents, tmp_path):
    (tmp_path / "last.ckpt").write_bytes(saved(contents))
    load_classifier(tmp_path / "last.ckpt")
    assert read_state(tmp_path / "last.ckpt")["global_step"] == 6


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name, contents, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, sentinel = tmp_path / "last.ckpt", tmp_path / "sentinel"
    path.write_bytes(ZOO[name](contents, str(sentinel)))
    started = time.process_time()
    with pytest.raises(UserError, match=re.escape(str(path))) as refusal:
        load_classifier(path)
    assert time.process_time() - started < 5  # and not gigabytes, or for ever
    assert "\n" not in str(refusal.value)
    assert not sentinel.exists()


def _folder(path):
    path.mkdir()


def _dangling(path):
    path.symlink_to(path.with_name("gone"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_folder, "is a folder"),
        (_dangling, "there is no file"),
        (os.mkfifo, "there is no file"),  # to open it would wait for ever
        (lambda path: path.symlink_to("/dev/zero"), "there is no file"),
    ],
)
def test_what_is_no_regular_file(make, message, tmp_path):
    make(tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=message):
        load_classifier(tmp_path / "last.ckpt")


def test_hyper_parameters_that_name_code_are_not_looked_at(contents, tmp_path):
    """Lightning's own way of loading would import what these name (CVE-2026-58659)."""
    sentinel = tmp_path / "sentinel"
    named = {"_instantiator": "os.mkdir", "_class_path": "os.mkdir", "path": str(sentinel)}
    (tmp_path / "last.ckpt").write_bytes(saved(contents | {"hyper_parameters": named}))
    load_classifier(tmp_path / "last.ckpt")
    assert not sentinel.exists()


def changed(tree, keys, value):
    """A copy of nested dictionaries and lists with another value at a place; REMOVED takes it away."""
    if not keys:
        return value
    copy = tree.copy()
    if value is REMOVED and len(keys) == 1:
        del copy[keys[0]]
    else:
        copy[keys[0]] = changed(copy[keys[0]], keys[1:], value)
    return copy


REMOVED = object()
PROGRESS = ("loops", "fit_loop", "epoch_progress")
MOMENTUM = ("optimizer_states", 0, "state", 0, "momentum_buffer")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("optimizer_states",), REMOVED),  # as in a file of weights alone
        (("loops",), REMOVED),
        (("progress",), REMOVED),
        (("global_step",), "six"),
        (("loops",), {}),
        (PROGRESS, {}),
        ((*PROGRESS, "current"), {"ready": "x"}),
        (("callbacks", "TrainingCurves"), {"epoch": {}}),
        (("progress", "random_states"), {}),
        (("progress", "random_states", "cpu"), torch.zeros(3, dtype=torch.uint8)),
        (("progress", "train_metrics"), []),
        (("lr_schedulers",), []),
        (("optimizer_states",), []),
        (("optimizer_states",), ["x"]),
        (("optimizer_states", 0, "param_groups"), []),
        (MOMENTUM, torch.zeros(3)),
        (MOMENTUM, torch.zeros(1)),
        (MOMENTUM, torch.zeros(())),
        (MOMENTUM, [[1.0] * 10] * 10),
        (("optimizer_states", 0, "param_groups", 0, "lr"), "fast"),
        (("optimizer_states", 0, "param_groups", 0, "params"), [0, 0, 0]),
        (("progress", "train_metrics", "pending"), [torch.zeros(3)] * 3),
        (("state_dict", "net.fc3.bias"), torch.zeros(11)),
        (("pytorch-lightning_version",), "banana"),
        (("pytorch-lightning_version",), REMOVED),
    ],
)
def test_state_that_cannot_be_resumed_from(keys, value, contents, compose, tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(saved(changed(contents, keys, value)))
    cfg = compose(*OVERRIDES, f"output_dir={folder}", f"resume={folder}")
    with pytest.raises(UserError, match=r"last\.ckpt cannot be resumed from: ") as refusal:
        train(cfg)
    assert "\n" not in str(refusal.value)
