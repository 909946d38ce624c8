import copy

import pytest
import torch
import torchvision
from torch import nn

from cifar_lightning.models import NETWORKS, build, head_of


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


@pytest.mark.parametrize("name", ["resnet18", "torchvision"])
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
        ("resnt18", {}, "name must be one of tutorial, resnet18.*got 'resnt18': did you mean resnet18"),
        ("tutorial", {"num_classes": 1}, r"num_classes must be a whole number in \[2, 10000\], got 1"),
        ("tutorial", {"num_classes": 10**9}, "num_classes must be a whole number"),
        ("resnet18", {"in_channels": 0}, r"in_channels must be a whole number in \[1, 64\], got 0"),
        ("tutorial", {"width": 64}, "width is not an argument of tutorial; it takes none"),
        (
            "torchvision",
            {"imagesize": 64},
            "imagesize is not an argument of torchvision; it takes arch, image_size, pre",
        ),
        ("torchvision", {"image_size": "64"}, "image_size must be a whole number or null, got '64'"),
        ("torchvision", {"image_size": 16}, r"image_size must be in \[32, 1024\] or null, got 16"),
        ("torchvision", {"in_channels": 2}, "in_channels must be 1 or 3, got 2"),
        (
            "torchvision",
            {"arch": "resnet19"},
            "torchvision's registry, got 'resnet19': did you mean resnet",
        ),
        ("torchvision", {"arch": "os.system"}, "torchvision's registry, got 'os.system'; allowed: alexnet, "),
        ("torchvision", {"stem": "large"}, "stem must be imagenet, small, got 'large'"),
        ("torchvision", {"arch": "vgg11", "stem": "small"}, "stem=small is for ResNets, vgg11 is a VGG"),
        ("torchvision", {"arch": "vit_b_32"}, "image_size must be a number for vit_b_32, whose layers depend on it"),
        (
            "torchvision",
            {"arch": "vit_b_32", "image_size": 50},
            "image_size=50 is not one that vit_b_32 can",
        ),
    ],
)
def test_bad_arguments(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(name, **{"num_classes": 10, "in_channels": 3} | arguments)


def test_networks_take_their_arguments_by_keyword():
    assert set(NETWORKS) == {"tutorial", "resnet18", "speedrun", "torchvision"}
    with pytest.raises(TypeError, match="positional"):
        NETWORKS["tutorial"](10)


@pytest.mark.parametrize(
    ("model", "head"),
    [
        ({"name": "tutorial"}, {"fc3.weight", "fc3.bias"}),
        ({"name": "speedrun", "depth": 3}, {"head.weight"}),
        ({"name": "torchvision", "arch": "efficientnet_b0"}, {"net.classifier.1.weight", "net.classifier.1.bias"}),
    ],
    ids=lambda value: value.get("name") if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("num_classes", [2, 10_000])
def test_the_head_is_what_the_number_of_classes_changes(model, head, num_classes):
    before = torch.get_rng_state()
    assert head_of(**model, num_classes=num_classes, in_channels=1) == head
    assert torch.equal(torch.get_rng_state(), before)
