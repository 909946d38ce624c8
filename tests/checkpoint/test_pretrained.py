"""ImageNet weights: fetched once, checked, and nothing else in their file is loaded."""

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision

from cifar_lightning.checkpoint import pretrained
from cifar_lightning.checkpoint.pretrained import load_pretrained
from cifar_lightning.data.download import RemoteFile
from cifar_lightning.models import build
from cifar_lightning.models.torchvision_zoo import TorchvisionNet


def content_of(value: object, folder: Path) -> bytes:
    torch.save(value, folder / "saved")
    return (folder / "saved").read_bytes()


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A network whose weights have an address from which nothing comes, and torch.hub's folder in tmp_path."""
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    content = content_of(state, tmp_path)
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    weights = SimpleNamespace(
        url=f"https://localhost:9/models/{name}", transforms=SimpleNamespace(keywords={"crop_size": 224})
    )
    monkeypatch.setattr(TorchvisionNet, "weights", weights)
    net = build("torchvision", num_classes=5, in_channels=3, arch="resnet18", pretrained=True)
    net.published, net.content, net.file = state, content, tmp_path / "hub" / "checkpoints" / name
    return net


def test_weights_on_disk_are_used(net, caplog):
    net.file.parent.mkdir(parents=True)
    net.file.write_bytes(net.content)
    with caplog.at_level("INFO"):
        load_pretrained(net)
    assert torch.equal(net.net.layer4[1].conv2.weight, net.published["layer4.1.conv2.weight"])
    assert "ImageNet's for all layers but fc.bias, fc.weight" in caplog.text


def test_absent_weights_are_fetched_once(net, monkeypatch):
    asked = []

    def announced(url: str, *, sha256: str) -> RemoteFile:
        return RemoteFile(net.file.name, len(net.content), None, sha256)

    def download(file: RemoteFile, urls: list[str], folder: Path) -> None:
        asked.append((file.name, urls))
        (folder / file.name).write_bytes(net.content)
        assert file.fault(folder / file.name) is None

    monkeypatch.setattr(pretrained, "announced", announced)
    monkeypatch.setattr(pretrained, "download", download)
    load_pretrained(net)
    load_pretrained(net)
    assert asked == [(net.file.name, [f"https://localhost:9/models/{net.file.name}"])]


def test_without_a_network_the_error_names_file_and_folder(net):
    message = (
        rf"the ImageNet weights of resnet18 cannot be downloaded: https://localhost:9/models/{net.file.name}: .*refused"
        "; "
        rf"put {net.file.name} into {net.file.parent}, or train from scratch with model\.pretrained=false"
    )
    with pytest.raises(OSError, match=message):
        load_pretrained(net)


def test_a_damaged_file_is_named(net):
    net.file.parent.mkdir(parents=True)
    net.file.write_bytes(net.content[:-1])
    with pytest.raises(OSError, match=rf"{net.file} is damaged, delete it: SHA-256 .* instead of"):
        load_pretrained(net)


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Hostile(), r"is damaged, delete it \(UnpicklingError\)"),
        ({"x": 1}, "holds no weights"),
        ([], "holds no weights"),
    ],
)
def test_a_file_of_something_else_is_refused_and_runs_nothing(net, tmp_path, monkeypatch, value, message):
    monkeypatch.chdir(tmp_path)
    content = content_of(value, tmp_path)
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    monkeypatch.setattr(TorchvisionNet.weights, "url", f"https://localhost:9/{name}")
    net.file.parent.mkdir(parents=True)
    net.file.with_name(name).write_bytes(content)
    with pytest.raises(OSError, match=message):
        load_pretrained(net)
    assert not (tmp_path / "hostile").exists()
