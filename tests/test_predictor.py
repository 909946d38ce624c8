"""A checkpoint that answers about pictures, from Python."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, make_classifier
from PIL import Image

import cifar_lightning
from cifar_lightning import models
from cifar_lightning.checkpoint.format import FORMAT_VERSION
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.data import ImageFolder
from cifar_lightning.errors import UserError
from cifar_lightning.tta import augmented_logits

CLASSES = list("abcdefghij")


def saved(path, classifier, *, size=(32, 32), channels=3, precision="32-true", tta=0):
    settings = {"name": "test", "seed": 0, "tta": tta, "num_threads": None, "compile": False, "classes": CLASSES}
    settings |= {"image_size": list(size), "fingerprint": {}, "data": {}, "trainer": {"precision": precision}}
    settings |= {"model": {"name": "tutorial", "num_classes": 10, "in_channels": channels}}
    settings |= {"normalize": {"mean": [0.5], "std": [0.5]}}
    contents = {"format_version": FORMAT_VERSION, "settings": settings, "state_dict": classifier.state_dict()}
    torch.save(contents, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{number}.png")
    Image.fromarray(rng.integers(0, 256, (60, 90, 3), np.uint8)).save(folder / "large.jpg")
    return folder


@pytest.fixture(scope="module")
def ckpt(folder):
    return saved(folder / "last.ckpt", make_classifier())


@pytest.fixture(scope="module")
def predictor(ckpt):
    return cifar_lightning.load(ckpt, accelerator="cpu")


def pixels(path):
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)


@pytest.mark.parametrize("tta", [0, 1, 2])
def test_predictions_are_the_classifier_s(predictor, folder, tta):
    paths = [folder / f"{number}.png" for number in range(5)]
    with torch.no_grad():
        _, logits = augmented_logits(make_classifier().eval(), torch.stack(list(map(pixels, paths))), level=tta)
    expected = logits.softmax(1)
    found = predictor.predict(paths, topk=3, tta=tta)
    torch.testing.assert_close(torch.stack([prediction.probs for prediction in found]), expected)
    for prediction, row in zip(found, expected, strict=True):
        order = row.argsort(descending=True)[:3].tolist()
        assert [name for name, _ in prediction.top] == [CLASSES[index] for index in order]
        assert (prediction.label, prediction.prob) == prediction.top[0]
        assert prediction.prob == pytest.approx(row.max().item())


def test_paths_images_and_tensors_are_the_same_picture(predictor, folder):
    path = folder / "3.png"
    found = predictor.predict([str(path), path, Image.open(path), pixels(path), Image.open(path).convert("RGBA")])
    assert [prediction.top for prediction in found] == [found[0].top] * 5
    images = torch.stack([pixels(folder / "3.png"), pixels(folder / "4.png")])
    assert predictor.predict(images)[1].label == predictor.predict([folder / "4.png"])[0].label


def test_files_are_read_as_those_of_a_folder_are(predictor, folder, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        for name in ("large.jpg", "0.png"):
            shutil.copy(folder / name, tmp_path / split / "cat")
    data = ImageFolder(tmp_path, train=False).data
    expected = torch.from_numpy(data).permute(0, 3, 1, 2)
    assert torch.equal(predictor.pixels([folder / "0.png", folder / "large.jpg"]), expected)


def test_turned_as_its_exif_says(predictor, folder):
    upright = Image.open(folder / "large.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    first, second = predictor.pixels([folder / "large.jpg", folder / "turned.png"])
    assert torch.equal(first, second)


def test_grey_networks_see_grey(folder):
    torch.manual_seed(0)
    net = models.build("tutorial", num_classes=10, in_channels=1)
    ckpt = saved(folder / "grey.ckpt", ImageClassifier(net, mean=[0.5], std=[0.5]), channels=1)
    predictor = cifar_lightning.load(ckpt, accelerator="cpu")
    expected = torch.from_numpy(np.asarray(Image.open(folder / "0.png").convert("L")).copy())
    assert torch.equal(predictor.pixels([folder / "0.png"])[0, 0], expected)


def test_as_many_batches_as_needed(predictor):
    images = torch.randint(256, (1203, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    probs = predictor.probs(images)
    assert probs.shape == (1203, 10)
    torch.testing.assert_close(probs[-3:], predictor.probs(images[-3:]))
    assert predictor.probs(images[:0]).shape == (0, 10)
    assert predictor.predict([]) == []


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ("0.png", r"pictures must be a list, got one path: write \['0\.png'\]"),
        (["nix.png"], r"1 of 1 files cannot be read: nix\.png: No such file or directory"),
        ([__file__], "not an image of a known format"),
        ([torch.zeros(3, 32, 32)], r"a tensor must be uint8 of shape \(3, 32, 32\), got torch\.float32"),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)], r"of shape \(3, 32, 32\), got torch\.uint8 of \(3, 8, 8\)"),
        ([b"x"], "a picture must be a path, an image of Pillow or a uint8 tensor, got a bytes"),
    ],
)
def test_what_is_no_picture(predictor, pictures, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict(pictures)


def test_values_out_of_their_range(predictor, folder):
    with pytest.raises(ValueError, match="topk must be at least 1, got 0"):
        predictor.predict([folder / "0.png"], topk=0)
    with pytest.raises(ValueError, match="level must be 0, 1 or 2, got 3"):
        predictor.predict([folder / "0.png"], tta=3)
    assert len(predictor.predict([folder / "0.png"], topk=99)[0].top) == 10


@pytest.mark.parametrize(("size", "channels"), [((32, 48), 3), ((32, 32), 2)])
def test_files_are_no_pictures_of_other_shapes(folder, size, channels):
    net = models.build("tutorial", num_classes=10, in_channels=channels)
    ckpt = saved(folder / "odd.ckpt", ImageClassifier(net, mean=[0.5], std=[0.5]), size=size, channels=channels)
    predictor = cifar_lightning.load(ckpt, accelerator="cpu")
    with pytest.raises(ValueError, match=r"read as squares of 1 or 3 channels, the checkpoint's images are \dx32x"):
        predictor.predict([folder / "0.png"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accelerator": "abacus"}, r"accelerator=abacus precision=null: .* \(accelerator=auto takes what"),
        ({"accelerator": "gpu"}, "accelerator=gpu precision=null: No supported gpu backend found!"),
        ({"accelerator": "cpu", "precision": "7-bit"}, "precision=7-bit"),
        ({"accelerator": "cpu:x"}, "accelerator=cpu:x"),
    ],
)
def test_devices_that_are_not_there(ckpt, arguments, message):
    with pytest.raises(UserError, match=message):
        cifar_lightning.load(ckpt, **arguments)


@pytest.mark.parametrize("native", [True, False])
def test_the_checkpoint_s_own_precision_where_the_device_computes_in_it(folder, monkeypatch, native):
    monkeypatch.setattr("cifar_lightning.predictor.multiplies_bf16", lambda device_type: native)
    ckpt = saved(folder / "bf16.ckpt", make_classifier(), precision="bf16-mixed", tta=1)
    predictor = cifar_lightning.load(ckpt, accelerator="cpu")
    assert predictor.precision == ("bf16-mixed" if native else "32-true")
    assert predictor.tta == 1
    assert cifar_lightning.load(ckpt, accelerator="cpu", precision="32-true").precision == "32-true"


def test_the_package_imports_nothing_heavy_until_it_is_asked():
    code = "import cifar_lightning, sys; assert 'torch' not in sys.modules; cifar_lightning.nix"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "module 'cifar_lightning' has no attribute 'nix'" in done.stderr
