"""The networks of torchvision by name: built, run, and given ImageNet weights."""

import pytest
import torch
import torchvision

from cifar_lightning.models import build
from cifar_lightning.models.torchvision_zoo import TorchvisionNet

ARCHS = torchvision.models.list_models(module=torchvision.models)
SIZES = {
    **{"inception_v3": 96, "maxvit_t": 224, "alexnet": 64, "vit_h_14": 42},
    **{"efficientnet_v2_l": 64, "regnet_x_400mf": 64},
}
"""Sizes that are not 32: what a network needs at least, is built for, or takes a step at without diverging."""
FAMILIES = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnext50_32x4d"),
    *("shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32", "wide_resnet50_2"),
)
QUICK = ["mobilenet_v3_small", "regnet_y_400mf", "googlenet", "squeezenet1_1", "vit_b_32"]


def weights_of(arch, num_classes=1000, **options):
    torch.manual_seed(1)
    return torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **options).state_dict()


def step(arch):
    size = SIZES.get(arch, 32)
    torch.manual_seed(0)
    net = build("torchvision", num_classes=5, in_channels=3, arch=arch, image_size=size).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    images = torch.randn(4, 3, 40, 40)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    logits = net(images)
    assert logits.shape == (4, 5)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    changed = [not torch.equal(one, other) for one, other in zip(before, net.parameters(), strict=True)]
    assert sum(changed) >= 2  # of a vision transformer, whose head begins with zeros, no more than that
    again = build("torchvision", num_classes=5, in_channels=3, arch=arch, image_size=size)
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again.eval()(images), net.eval()(images))


@pytest.mark.parametrize("arch", QUICK)
def test_a_training_step(arch):
    step(arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", sorted(set(ARCHS) - set(QUICK)))
def test_a_training_step_of_every_network(arch):
    step(arch)


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=() if arch in FAMILIES else pytest.mark.slow) for arch in ARCHS]
)
def test_every_network_is_built_without_memory(arch):
    """As for a checkpoint, whose tensors become the weights."""
    size = SIZES.get(arch, 64)
    with torch.device("meta"):
        net = build("torchvision", num_classes=5, in_channels=1, arch=arch, image_size=size)
        assert net.eval()(torch.empty(2, 1, 32, 32)).shape == (2, 5)
    assert {parameter.device.type for parameter in net.parameters()} == {"meta"}


def test_images_are_resized_and_grey_ones_fill_three_channels():
    net = build("torchvision", num_classes=5, in_channels=1, arch="resnet18", image_size=64)
    seen = []
    net.net.conv1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    net(torch.rand(2, 1, 32, 40))
    assert seen[0].shape == (2, 3, 64, 64)
    assert torch.equal(seen[0][:, 0], seen[0][:, 2])


def test_the_small_stem_is_that_of_resnet18():
    zoo = build("torchvision", num_classes=10, in_channels=3, arch="resnet18", stem="small")
    own = build("resnet18", num_classes=10, in_channels=3)
    own.load_state_dict(zoo.net.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(zoo.eval()(images), own.eval()(images))


@pytest.mark.parametrize(
    ("arch", "head"),
    [
        ("resnet18", ["fc.bias", "fc.weight"]),
        ("mobilenet_v3_small", ["classifier.3.bias", "classifier.3.weight"]),
        ("squeezenet1_1", ["classifier.1.bias", "classifier.1.weight"]),
    ],
)
@pytest.mark.parametrize("num_classes", [5, 1000])
def test_weights_are_taken_for_all_layers_but_the_head(arch, head, num_classes):
    net = build("torchvision", num_classes=num_classes, in_channels=3, arch=arch, pretrained=True)
    own = {name: value.clone() for name, value in net.net.state_dict().items()}
    state = weights_of(arch)
    assert net.take_weights(state) == head
    for name, value in net.net.state_dict().items():
        assert torch.equal(value, own[name] if name in head else state[name]), name


def test_the_second_heads_of_googlenet_are_left_out():
    net = build("torchvision", num_classes=5, in_channels=3, arch="googlenet", pretrained=True)
    assert net.net.transform_input  # the published weights are for images normalised otherwise
    state = weights_of("googlenet", init_weights=False)
    assert any(name.startswith("aux1.") for name in state)
    assert net.take_weights(state) == ["fc.bias", "fc.weight"]


def test_a_small_stem_starts_anew():
    net = build("torchvision", num_classes=5, in_channels=3, arch="resnet18", pretrained=True, stem="small")
    assert net.take_weights(weights_of("resnet18")) == ["conv1.weight", "fc.bias", "fc.weight"]


@pytest.mark.parametrize(
    ("arch", "change", "message"),
    [
        (
            "resnet18",
            lambda s: {n: v for n, v in s.items() if n != "bn1.weight"},
            "bn1.weight is missing in resnet18's",
        ),
        (
            "resnet18",
            lambda s: s | {"x": torch.ones(1)},
            r"x is \(1,\) in resnet18's pretrained weights and missing in",
        ),
        ("vit_b_32", lambda s: s, r"encoder\.pos_embedding is \(1, 50, 768\) .* of image_size=224, got 64"),
    ],
)
def test_weights_of_another_network_are_refused(arch, change, message):
    with torch.device("meta"):
        net = TorchvisionNet(num_classes=5, arch=arch, pretrained=True, image_size=64)
        options = {"image_size": 224} if arch.startswith("vit") else {}
        state = change(weights_of(arch, **options))
    with pytest.raises(ValueError, match=message):
        net.take_weights(state)
