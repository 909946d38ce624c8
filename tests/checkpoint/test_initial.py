"""init=: the weights of a checkpoint as the start of another training."""

import pytest
import torch
from conftest import BARE, FAST, SMALL, TinyCIFAR10, differences, last

from cifar_lightning.commands.train import train
from cifar_lightning.data.synthetic import Synthetic
from cifar_lightning.errors import UserError

STEP = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.limit_test_batches=1", "optimizer.lr=0.0")
"""A run that changes no weight, so that it ends with those it began with."""


class OtherClasses(TinyCIFAR10):
    """The same images with classes of other names."""

    def __init__(self, root, train=True, download=False):
        super().__init__(root, train=train, download=download)
        self.classes = [f"other {name}" for name in self.classes]


class Fewer(TinyCIFAR10):
    """Three classes, one of them new."""

    def __init__(self, root, train=True, download=False):
        super().__init__(root, train=train, download=download)
        self.classes, self.targets = ["cat", "dog", "unicorn"], [target % 3 for target in self.targets]


class Grey(Synthetic):
    """Images of one channel."""

    def __init__(self, root=None, train=True, download=False):
        super().__init__(root, train=train)
        self.data = self.data[..., 0]


def of(folder):
    return f"init={folder / 'checkpoints' / 'last.ckpt'}"


def data(name):
    return f"data.dataset._target_=test_initial.{name}"


@pytest.fixture
def before(run):
    return run(*BARE, "normalize=cifar10")[1]


def test_the_same_classes_begin_with_all_weights(run, before, caplog):
    caplog.set_level("INFO")
    _, folder = run(*BARE, *STEP, "normalize=cifar10", of(before), "seed=7")
    assert differences(last(folder)["state_dict"], last(before)["state_dict"]) == []
    assert "init      weights of tutorial, seed 0, from" in caplog.text
    assert "the head among them" in caplog.text
    assert last(folder)["settings"]["init"].endswith("last.ckpt")


@pytest.mark.parametrize(("name", "num"), [("OtherClasses", 10), ("Fewer", 3)])
def test_other_classes_get_a_new_head(run, before, caplog, name, num):
    caplog.set_level("INFO")
    _, fresh = run(*BARE, *STEP, "normalize=cifar10", data(name), "seed=7")
    _, folder = run(*BARE, *STEP, "normalize=cifar10", data(name), of(before), "seed=7")
    changed = differences(last(folder)["state_dict"], last(before)["state_dict"])
    assert changed == [".net.fc3.weight", ".net.fc3.bias"]
    for part in ("weight", "bias"):  # drawn as ever
        assert torch.equal(last(folder)["state_dict"][f"net.fc3.{part}"], last(fresh)["state_dict"][f"net.fc3.{part}"])
    assert f"the head is new, for {num} other classes" in caplog.text


def test_a_network_that_is_set_from_data_keeps_the_weights_it_is_given(run):
    small = (*BARE, "model=speedrun", "model.widths=[8,8,8]", "trainer.max_epochs=1")
    _, before = run(*small)
    _, folder = run(*small, *STEP, of(before), "augment=crop_flip", "seed=3")
    filters = [last(place)["state_dict"]["net.patches.weight"] for place in (before, folder)]
    assert torch.equal(*filters)


def test_it_is_resumed_without_the_first_checkpoint(command, tmp_path):
    assert command("train.py", *FAST, *BARE, "output_dir=a", tiny=True).code == 0
    init = "init=a/checkpoints/last.ckpt"
    assert command("train.py", *FAST, *BARE, "output_dir=whole", init, "trainer.max_epochs=3", tiny=True).code == 0
    assert command("train.py", *FAST, *BARE, "output_dir=b", init, "trainer.max_epochs=1", tiny=True).code == 0
    (tmp_path / "a" / "checkpoints" / "last.ckpt").unlink()
    assert command("train.py", "resume=b", "trainer.max_epochs=3", tiny=True).code == 0
    assert differences(last(tmp_path / "b")["state_dict"], last(tmp_path / "whole")["state_dict"]) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("model=speedrun",), r"is of another network, got model=speedrun; type model=tutorial, and leave out arg"),
        (
            ("normalize=imagenet",),
            r"normalised otherwise, got normalize\.mean=\[0\.485,.*; type normalize\.mean=\[0\.4914",
        ),
        (("normalize=tutorial",), r"got normalize\.mean=\[0\.5\]; type normalize\.mean="),
        (
            ("normalize=cifar10", "data=synthetic", data("Grey"), "normalize.mean=[0.5]", "normalize.std=[0.5]"),
            "channels",
        ),
    ],
)
def test_another_network_is_refused_with_what_to_type(compose, before, overrides, message):
    with pytest.raises(UserError, match=message):
        train(compose(*SMALL, *overrides, of(before)))


def test_arguments_of_the_network_are_said(compose, run):
    _, before = run(*BARE, *STEP, "model=torchvision", "model.arch=mobilenet_v3_small", "model.image_size=40")
    with pytest.raises(
        UserError, match=r"got model=torchvision; type model.arch='mobilenet_v3_small' model.image_size=40"
    ):
        train(compose(*SMALL, "model=torchvision", of(before)))


def test_what_the_gate_refuses(compose, tmp_path, before):
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(UserError, match=r"text\.ckpt is not a checkpoint of this project"):
        train(compose(*SMALL, f"init={tmp_path / 'text.ckpt'}"))
    with pytest.raises(UserError, match="there is no file"):
        train(compose(*SMALL, f"init={tmp_path / 'nix.ckpt'}"))
    checkpoint = last(before)
    checkpoint["state_dict"]["net.conv1.weight"] = torch.ones(1)
    torch.save(checkpoint, tmp_path / "shape.ckpt")
    with pytest.raises(UserError, match=r"shape\.ckpt: the weights do not fit the network, conv1\.weight"):
        train(compose(*SMALL, "normalize=cifar10", f"init={tmp_path / 'shape.ckpt'}"))
