"""Each format computes what the checkpoint does, describes itself, and says how it is used in lines that work."""

import json
import re

import pytest
import torch
import yaml
from conftest import CLASSES, save_checkpoint

import cifar_lightning
from cifar_lightning import models
from cifar_lightning.checkpoint.format import read
from cifar_lightning.checkpoint.load import load_classifier
from cifar_lightning.export import FORMATS, check
from cifar_lightning.export.check import compare, make_images
from cifar_lightning.export.source import load_source

NETWORKS = {
    "tutorial": {},
    "speedrun": {"widths": [4, 6, 8], "depth": [2, 3, 2]},
    "resnet18": {},
    "torchvision": {"arch": "mobilenet_v3_small", "image_size": 32},
}
SLOW = ("resnet18", "torchvision")
SPEEDRUN = {"name": "speedrun", "widths": [4, 6, 8]}
ODD = [
    "cat",
    "'quoted' \"twice\"",
    "null",
    "- a: [b]\n---\n# c",
    "```\n</script>",
    "猫🐈",
    "\x1b[31mred",
    "{x}",
    "a|b",
    "1",
]


def written(ckpt, name):
    """The path of what a format makes of a checkpoint, with the source of it."""
    for library in FORMATS[name].packages:
        pytest.importorskip(library)
    source, how = load_source(ckpt), FORMATS[name]
    for path, content in how.files(source, f"{ckpt.stem}{how.ending}").items():
        (ckpt.parent / path).parent.mkdir(exist_ok=True)
        (ckpt.parent / path).write_bytes(content)
    return source, ckpt.parent / f"{ckpt.stem}{how.ending}"


def test_every_network_is_tried():
    assert set(NETWORKS) == set(models.NETWORKS)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "network", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in NETWORKS]
)
def test_every_network_in_every_format(tmp_path, monkeypatch, network, format):
    monkeypatch.setattr(check, "NUM_IMAGES", 30)
    source, path = written(save_checkpoint(tmp_path / "last.ckpt", name=network, **NETWORKS[network]), format)
    found = compare(source, FORMATS[format].opened(path, source))
    assert found.is_good
    assert found.batch_sizes == [1, 7, 22]
    assert found.max_difference < 1e-5
    if FORMATS[format].is_read_again:
        classifier, contents = load_classifier(path)
        assert compare(source, classifier).max_difference == found.max_difference
        own = read(tmp_path / "last.ckpt")
        assert contents["format_version"] == own["format_version"]
        for key, value in own["settings"].items():
            if key != "trainer":
                assert contents["settings"][key] == value
        assert contents["images"]["resize"] == "largest centred square, antialiased bilinear"


@pytest.mark.parametrize("format", FORMATS)
def test_a_temperature_goes_along(tmp_path, monkeypatch, format):
    """A program's logits are divided by it; read again they are the checkpoint's. Weights alone are as they were."""
    monkeypatch.setattr(check, "NUM_IMAGES", 30)
    ckpt = save_checkpoint(tmp_path / "last.ckpt", name="tutorial", temperature=0.25)
    source, path = written(ckpt, format)
    found = compare(source, FORMATS[format].opened(path, source))
    assert found.is_good
    assert found.max_difference < 1e-5
    images = make_images(source.image_shape)[:9]
    names = {"images": images.numpy() if format == "onnx" else images}
    with torch.no_grad():
        exec(FORMATS[format].usage(source, path), names)
        expected = source.reference(images)
    probabilities = (expected / 0.25).softmax(1)
    logits = torch.as_tensor(names["logits"])
    if FORMATS[format].is_read_again:
        torch.testing.assert_close(logits.softmax(1), probabilities, atol=1e-5, rtol=0)
        again, contents = load_classifier(path)
        assert contents["temperature"] == again.temperature == 0.25
        torch.testing.assert_close(again(images), expected, atol=1e-5, rtol=0)
        assert cifar_lightning.load(path).probs(images) == pytest.approx(probabilities, abs=1e-5)
    else:
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(names["probabilities"], probabilities, atol=1e-5, rtol=0)
    assert cifar_lightning.load(ckpt, accelerator="cpu").probs(images) == pytest.approx(probabilities, abs=1e-5)


@pytest.mark.parametrize("temperature", [None, 0.25])
def test_the_folder_for_the_hub_tells_of_the_temperature(tmp_path, temperature):
    safetensors = pytest.importorskip("safetensors")
    _, path = written(save_checkpoint(tmp_path / "last.ckpt", temperature=temperature, **SPEEDRUN), "safetensors")
    card = (path / "README.md").read_text()
    calibrated = "calibrated: temperature 0.25, fitted on validation images."
    cure = "uncalibrated and may be too high or too low: train with data.val_size=auto to calibrate them."
    assert f"\nIts probabilities are {cure if temperature is None else calibrated}\n" in card
    with safetensors.safe_open(path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["cifar_lightning.json"])["temperature"] == temperature


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_images_of_an_odd_size_and_the_fourier_domain(tmp_path, format):
    """The checkpoint computes 256 images at once in the Fourier domain, which no format can express."""
    ckpt = save_checkpoint(tmp_path / "last.ckpt", name="speedrun", widths=[48, 48, 8], fourier=True, size=17)
    source, path = written(ckpt, format)
    found = compare(source, FORMATS[format].opened(path, source))
    assert found.is_good
    assert found.num_images == 256


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("format", ["torch_export", "state_dict"])
def test_weights_of_other_types_are_exported_in_float32(tmp_path, format, dtype):
    source, path = written(save_checkpoint(tmp_path / "last.ckpt", dtype=dtype, **SPEEDRUN), format)
    assert source.weights_type == str(dtype).removeprefix("torch.")
    assert {value.dtype for value in source.weights.values()} <= {torch.float32, torch.int64}
    assert compare(source, FORMATS[format].opened(path, source)).is_good
    # What training has rounded mean and std to is what the lines for users say.
    assert (source.mean == pytest.approx([0.5, 0.4, 0.3], rel=1e-6)) == (dtype is torch.float64)


@pytest.mark.parametrize("format", FORMATS)
def test_the_lines_for_users_work_and_names_may_hold_anything(tmp_path, format):
    classes = [*ODD[:-1], "\ud800"]
    source, path = written(save_checkpoint(tmp_path / "a 'b\".ckpt", classes=classes, **SPEEDRUN), format)
    images = make_images(source.image_shape)[:9]
    names = {"images": images.numpy() if format == "onnx" else images}
    with torch.no_grad():
        exec(FORMATS[format].usage(source, path), names)
        expected = source.reference(images)
    torch.testing.assert_close(torch.as_tensor(names["logits"]), expected, atol=1e-6, rtol=1e-5)
    if FORMATS[format].is_read_again:
        assert load_classifier(path)[1]["settings"]["classes"] == classes
        for part in (b"speedrun.py", b'File "'):  # no line tells of the machine that exports
            assert part not in path.read_bytes()


def test_the_folder_for_the_hub(tmp_path, monkeypatch):
    load_file = pytest.importorskip("safetensors.torch").load_file
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "metrics.json").write_text(json.dumps({"test/acc": 0.9421, "num_test_images": 10_000}))
    ckpt = save_checkpoint(run / "checkpoints" / "last.ckpt", classes=ODD, **SPEEDRUN)
    source, path = written(ckpt, "safetensors")
    config = json.loads((path / "config.json").read_text())
    assert config["label_names"] == ODD
    assert (config["num_classes"], config["num_features"]) == (10, 8)
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.4, 0.3]

    readme = (path / "README.md").read_text(encoding="ascii")
    _, front, body = re.split(r"^---$", readme, maxsplit=2, flags=re.MULTILINE)
    front = yaml.safe_load(front)
    assert (front["library_name"], front["pipeline_tag"]) == ("cifar-lightning", "image-classification")
    assert front["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.9421}]
    assert "Accuracy on the 10,000 test images: 94.21%." in body
    code, classes, recipe = re.findall(r"^```\w+\n(.*?)^```$", body, flags=re.MULTILINE | re.DOTALL)
    assert json.loads(classes) == ODD
    assert json.loads(recipe)["model"] == source.settings["model"]
    assert str(tmp_path) not in readme

    monkeypatch.chdir(path)  # as whoever downloads the folder
    images = make_images(source.image_shape)[:5]
    names = {"images": images}
    exec(code, names)
    torch.testing.assert_close(names["logits"], source.reference(images))
    assert set(load_file("model.safetensors")) == set(source.weights)
    with pytest.importorskip("safetensors").safe_open("model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["cifar_lightning.json"])["settings"]["classes"] == ODD


def test_accuracy_is_told_of_the_weights_it_was_measured_with(tmp_path):
    pytest.importorskip("safetensors")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "metrics.json").write_text(json.dumps({"test/acc": 0.5}))  # of last.ckpt
    ckpt = save_checkpoint(run / "checkpoints" / "best.ckpt", **SPEEDRUN)
    _, path = written(ckpt, "safetensors")
    assert "Its accuracy was not recorded" in (path / "README.md").read_text()
    assert "model-index" not in (path / "README.md").read_text()
    (run / "evaluate" / "best").mkdir(parents=True)
    (run / "evaluate" / "best" / "metrics.json").write_text(json.dumps({"test/acc": 0.25}))
    written(ckpt, "safetensors")
    assert "Accuracy on the test images: 25.00%." in (path / "README.md").read_text()


def test_a_difference_is_seen(tmp_path):
    source = load_source(save_checkpoint(tmp_path / "last.ckpt", name="tutorial"))
    assert compare(source, source.classifier).max_difference < 1e-6
    for change, disagrees in ((1e-3, False), (float("nan"), True)):
        found = compare(source, lambda images, change=change: source.classifier(images) + change)
        assert not found.is_good
        assert bool(found.num_disagreements) == disagrees
    mirrored = compare(source, lambda images: source.classifier(images).flip(1))
    assert mirrored.num_disagreements > 200


def test_nearly_a_tie_is_no_disagreement(tmp_path):
    source = load_source(save_checkpoint(tmp_path / "last.ckpt", name="tutorial"))
    source.reference.net.fc3.weight.data.zero_()
    source.reference.net.fc3.bias.data.copy_(torch.tensor([1.0, 1.000001, *[0.0] * 8]))
    source.classifier.load_state_dict(source.reference.state_dict())
    found = compare(source, lambda images: source.classifier(images)[:, [1, 0, *range(2, len(CLASSES))]])
    assert (found.num_disagreements, found.num_ties) == (0, 256)
    assert found.is_good
