import copy
import hashlib
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn

from cifar_lightning.models import NETWORKS, build
from cifar_lightning.models.resnet import ResNet18ImageNet


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(("name", "expected"), [("tutorial", 62_006), ("resnet18", 11_173_962)])
def test_parameter_counts(name, expected):
    net = build(name, num_classes=10, in_channels=3)
    assert num_parameters(net) == expected
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", ["tutorial", "resnet18"])
def test_grey_images_and_other_class_counts(name):
    assert build(name, num_classes=7, in_channels=1)(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_tutorial_network_equals_the_tutorials_layers():
    net = build("tutorial", num_classes=10, in_channels=3)
    tutorial = nn.Sequential(
        *(nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2, 2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )
    tutorial.load_state_dict(dict(zip(tutorial.state_dict(), net.state_dict().values(), strict=True)))
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(net(images), tutorial(images))


def test_resnet18_equals_torchvisions_except_for_the_stem():
    net = build("resnet18", num_classes=10, in_channels=3).eval()
    reference = torchvision.models.resnet18(num_classes=10).eval()
    blocks = ("layer1", "layer2", "layer3", "layer4")
    for name in ("bn1", *blocks, "fc"):  # the stem's filters have another shape
        getattr(reference, name).load_state_dict(getattr(net, name).state_dict())
    images = torch.randn(2, 3, 32, 32)
    features = torch.relu(reference.bn1(nn.functional.conv2d(images, net.conv1.weight, padding=1)))
    assert features.shape == (2, 64, 32, 32)
    for name in blocks:
        features = getattr(reference, name)(features)
    torch.testing.assert_close(net(images), reference.fc(features.mean((2, 3))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet18_imagenet"])
def test_channels_last_survives_loading(name):
    net = build(name, num_classes=10, in_channels=3)
    contiguous = {key: value.contiguous() for key, value in copy.deepcopy(net).state_dict().items()}
    net.load_state_dict(contiguous)
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d) and module.kernel_size > (1, 1)]
    assert len(convolutions) == 17
    assert all(module.weight.is_contiguous(memory_format=torch.channels_last) for module in convolutions)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnt18", {}, "name must be one of tutorial, resnet18.*got 'resnt18'; did you mean resnet18"),
        ("tutorial", {"num_classes": 1}, r"num_classes must be a whole number in \[2, 10000\], got 1"),
        ("tutorial", {"num_classes": 10**9}, "num_classes must be a whole number"),
        ("resnet18", {"in_channels": 0}, r"in_channels must be a whole number in \[1, 64\], got 0"),
        ("tutorial", {"width": 64}, "width is not an argument of tutorial; it takes none"),
        (
            "resnet18_imagenet",
            {"imagesize": 64},
            "imagesize is not an argument of resnet18_imagenet; it takes image_size",
        ),
        ("resnet18_imagenet", {"image_size": "64"}, "image_size must be a whole number, got '64'"),
        ("resnet18_imagenet", {"image_size": 16}, r"image_size must be in \[32, 1024\], got 16"),
        ("resnet18_imagenet", {"in_channels": 1}, "in_channels must be 3, as in ImageNet, got 1"),
    ],
)
def test_bad_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(name, **{"num_classes": 10, "in_channels": 3} | arguments)


def test_networks_take_their_arguments_by_keyword():
    assert set(NETWORKS) == {"tutorial", "resnet18", "resnet18_imagenet", "speedrun"}
    with pytest.raises(TypeError, match="positional"):
        NETWORKS["tutorial"](10)


# ImageNet weights, without a network connection


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's cache in tmp_path with weights in it, under an address from which no download is possible."""
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()
    file = tmp_path / "weights.pth"
    torch.save(state, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    (tmp_path / "checkpoints").mkdir()
    cached = file.rename(tmp_path / "checkpoints" / f"resnet18-{digest}.pth")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))

    def no_network(url: str, *args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)

    def get_state_dict(*args: object, **kwargs: object) -> object:
        return torch.hub.load_state_dict_from_url(f"https://example.org/{cached.name}", *args, **kwargs)

    weights = SimpleNamespace(url=f"https://example.org/{cached.name}", get_state_dict=get_state_dict)
    monkeypatch.setattr(ResNet18ImageNet, "weights", weights)
    return SimpleNamespace(file=cached, state=state)


@pytest.fixture
def imagenet_net() -> nn.Module:
    return build("resnet18_imagenet", num_classes=10, in_channels=3, image_size=64)


def test_load_pretrained_sets_all_layers_except_the_head(hub, imagenet_net):
    head = imagenet_net.resnet.fc.weight.clone()
    imagenet_net.load_pretrained()
    assert torch.equal(imagenet_net.resnet.fc.weight, head)
    for key, value in hub.state.items():
        assert key.startswith("fc.") or torch.equal(imagenet_net.resnet.state_dict()[key], value), key


def test_the_network_resizes_its_images(imagenet_net):
    seen = []
    imagenet_net.resnet.conv1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    assert imagenet_net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert seen == [(2, 3, 64, 64)]


def test_an_error_of_the_download_names_file_and_folder(hub, imagenet_net):
    hub.file.unlink()
    with pytest.raises(OSError, match=rf"no route to host.*put {hub.file.name} into {hub.file.parent}"):
        imagenet_net.load_pretrained()


@pytest.mark.parametrize("damage", [b"", b"<html>", None])
def test_an_error_of_damaged_weights_names_the_file(hub, imagenet_net, damage):
    if damage is None:  # torch can load this file, but its hash is wrong
        torch.save(torchvision.models.resnet18().state_dict(), hub.file)
    else:
        hub.file.write_bytes(damage)
    with pytest.raises(OSError, match=rf"{hub.file} is damaged, delete it"):
        imagenet_net.load_pretrained()
