import inspect
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cifar_lightning.config.resolve import plain
from cifar_lightning.models import build
from cifar_lightning.models.speedrun import ConvGroup, SpeedrunNet, whitening_filters


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Normalised images with correlated neighbouring pixels and channels and a mean other than 0."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(600, 3, 4, 4, generator=generator) + 0.5
    coarse[:, 1:] += coarse[:, :1]
    return F.interpolate(coarse, (16, 16), mode="bilinear") + 0.3 * torch.randn(600, 3, 16, 16, generator=generator)


def second_moment(outputs: Tensor) -> Tensor:
    """(N, C, H, W) -> (C, C)"""
    values = outputs.double().transpose(0, 1).flatten(1)
    return values @ values.mT / values.shape[1]


def group(in_channels: int = 4, width: int = 8, **arguments: object) -> ConvGroup:
    usual = {"depth": 2, "identity_init": True, "bn_momentum": 0.4, "fourier": False}
    return ConvGroup(in_channels, width, **(usual | arguments))


# Size and cost
#
#                     94 %                       95 %                       96 %
# first layer     3*4*24 + 24         312    the same            312    the same            312
# group 1        24*64*9           13,824   24*128*9          27,648   24*128*9          27,648
#                64*64*9           36,864   128*128*9        147,456   2 * 128*128*9    294,912
# group 2        64*256*9         147,456   128*384*9        442,368   128*384*9        442,368
#                256*256*9        589,824   384*384*9      1,327,104   2 * 384*384*9  2,654,208
# group 3        2 * 256*256*9  1,179,648   2 * 384*384*9  2,654,208   384*512*9      1,769,472
#                                                                      2 * 512*512*9  4,718,592
# norms          4*(64+2*256)       2,304   4*(128+2*384)      3,584   6*1024             6,144
# head           256*10             2,560   384*10             3,840   512*10             5,120
#
# Not trained: half of the norms' parameters, which are scales, and the 288 weights of the first layer's filters.
#
# A convolution costs 2 FLOPs per weight and position: 31*31 in the first layer, then in the groups, before and after
# their pooling, 30*30 and 15*15, 14*14 and 7*7, 6*6 and 3*3. For 94 %, the sum of weights times positions is
#     288*961 + 13,824*900 + 36,864*225 + 147,456*196 + 589,824*(49 + 36 + 9) + 2,560 = 105,360,160.


@pytest.mark.parametrize(
    ("choice", "parameters", "frozen", "flops"),
    [
        ("speedrun", 1_972_792, 288 + 1_152, 210_720_320),
        ("speedrun95", 4_606_520, 288 + 1_792, 539_586_624),
        ("speedrun96", 9_918_776, 288 + 3_072, 828_897_856),
    ],
)
def test_size_and_cost(choice, parameters, frozen, flops, compose):
    net = build(**plain(compose(f"model={choice}"))["model"], num_classes=10, in_channels=3)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert sum(parameter.numel() for parameter in net.parameters() if not parameter.requires_grad) == frozen
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.randn(1, 3, 32, 32))
    assert counter.get_total_flops() == flops


@pytest.mark.parametrize("size", [(15, 15), (14, 14), (7, 10), (10, 7)])
def test_rows_and_columns_that_pooling_drops_do_not_change_the_output(size):
    group = ConvGroup(4, 6, depth=2, identity_init=False, bn_momentum=0.4, fourier=False).double()
    features = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    pooled = group(features)
    (gradient,) = torch.autograd.grad(pooled.square().sum(), features)
    whole = F.max_pool2d(F.conv2d(features, group.convs[0].weight, padding=1), 2)
    expected = F.gelu(group.norms[1](group.convs[1](F.gelu(group.norms[0](whole)))))
    torch.testing.assert_close(pooled, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), features)[0])


def test_conf_model_speedrun_equals_the_constructors_defaults(compose):
    config = plain(compose("model=speedrun"))["model"]
    parameters = inspect.signature(SpeedrunNet).parameters
    for key in config.keys() - {"name"}:
        default = parameters[key].default
        assert config[key] == (list(default) if key == "widths" else default), key
    assert parameters.keys() - config.keys() == {"num_classes", "in_channels"}


@pytest.mark.parametrize("size", [9, 24, 32])
@pytest.mark.parametrize(("in_channels", "depth"), [(3, 2), (1, 3)])
def test_forward_shapes(size, in_channels, depth):
    net = SpeedrunNet(num_classes=7, in_channels=in_channels, widths=(16, 24, 8), depth=depth)
    net.init_from_data(torch.randn(20, in_channels, size, size))
    assert net.patches.weight.shape == (8 * in_channels, in_channels, 2, 2)
    assert net(torch.randn(2, in_channels, size, size)).shape == (2, 7)


def test_filters_are_channels_last():
    assert all(
        parameter.is_contiguous(memory_format=torch.channels_last)
        for parameter in SpeedrunNet().parameters()
        if parameter.ndim == 4
    )


def test_speedrun_gpu_is_airbench94_as_published(compose):
    """airbench94's rates are for the loss summed over a batch, its decay is per image of a batch."""
    config = plain(compose("experiment=speedrun_gpu"))
    batch_size, optimizer = config["data"]["batch_size"], config["optimizer"]
    assert (batch_size, config["trainer"]["max_epochs"], config["label_smoothing"], config["tta"]) == (2000, 8, 0.2, 2)
    assert (optimizer["lr"], optimizer["momentum"], optimizer["ns_steps"]) == (0.24, 0.6, 3)
    assert optimizer["sgd_momentum"] == 0.85
    summed = {"head_lr": 0.67, "norm_lr": 0.053, "whiten_bias_lr": 0.053, "weight_decay": 2e-6}
    assert {key: optimizer[key] / batch_size for key in summed} == pytest.approx(summed)
    assert config["freeze"] == [["patches.bias", 75 / 200]]
    model = config["model"]
    assert (model["widths"], model["depth"], model["bn_momentum"]) == ([64, 256, 256], 2, 0.4)
    assert (model["logit_scale"], model["unit_head"], model["zero_bias"]) == (1 / 256, True, False)
    augment = config["augment"]
    assert (augment["flip"], augment["padding"], augment["cutout_size"], augment["early_sizes"]) == (
        "alternating",
        2,
        0,
        [],
    )
    assert (config["schedule"]["warmup_fraction"], config["schedule"]["end_factor"]) == (0, 0)
    assert config["trainer"]["log_every_n_steps"] == 0


def test_speedrun96_is_airbench96_as_published(compose):
    """airbench96's script has rates per 1024 images, times a factor of the momentum."""
    config = plain(compose("experiment=speedrun96"))
    scale = 1024 * (1 + 1 / (1 - 0.85))
    batch_size, optimizer, augment = config["data"]["batch_size"], config["optimizer"], config["augment"]
    assert optimizer["_target_"].endswith("sgd_by_kind")
    assert optimizer["momentum"] == 0.85
    assert optimizer["lr"] / batch_size == pytest.approx(9.0 / scale, rel=1e-5)
    assert optimizer["norm_lr"] == pytest.approx(64 * optimizer["lr"])
    assert optimizer["weight_decay"] / batch_size == pytest.approx(0.012 / scale, rel=1e-5)
    assert config["freeze"] == [["patches.bias", pytest.approx(3 / 37)]]
    assert (config["trainer"]["max_epochs"], config["label_smoothing"], config["tta"]) == (37, 0.2, 2)
    assert (augment["flip"], augment["padding"], augment["cutout_size"], augment["early_sizes"]) == (
        "alternating",
        4,
        12,
        [],
    )
    model = config["model"]
    assert (model["widths"], model["depth"], model["bn_momentum"]) == ([128, 384, 512], 3, 0.1)
    assert (model["logit_scale"], model["unit_head"], model["zero_bias"]) == (1 / 9, False, True)
    schedule = config["schedule"]
    assert (schedule["warmup_fraction"], schedule["start_factor"], schedule["end_factor"]) == (0.1, 0.2, 0)
    assert "lookahead" in config["callbacks"]


# Whitening


def test_outputs_are_white_and_come_in_both_signs(images):
    net = SpeedrunNet(zero_bias=True)
    net.init_from_data(images)
    outputs = net.patches(images)
    positive, negative = outputs.chunk(2, dim=1)
    torch.testing.assert_close(negative, -positive)
    # With noise of 0.3 no eigenvalue is below 0.09; eps lowers the identity by at most eps / eigenvalue.
    torch.testing.assert_close(second_moment(positive), torch.eye(12).double(), rtol=0, atol=5e-4 / 0.09)


def test_without_eps_outputs_are_exactly_white(images):
    outputs = F.conv2d(images, whitening_filters(images, eps=0.0))
    torch.testing.assert_close(second_moment(outputs), torch.eye(12).double(), rtol=0, atol=1e-5)


def test_constant_images_give_filters_of_limited_size():
    filters = whitening_filters(torch.full((2, 3, 8, 8), 0.5))
    assert filters.isfinite().all()
    assert filters.abs().max() <= 5e-4**-0.5


def test_filters_depend_on_the_images_alone(images):
    filters = whitening_filters(images)
    assert torch.equal(filters, whitening_filters(images))
    # Another order of summation, as on another machine, changes no sign.
    torch.testing.assert_close(filters, whitening_filters(images.flip(0).contiguous()), rtol=0, atol=1e-5)
    flat = filters.flatten(1)
    assert (flat.gather(1, flat.abs().argmax(1, keepdim=True)) > 0).all()


def test_autocast_does_not_change_the_filters(images):
    with torch.autocast("cpu", torch.bfloat16):
        filters = whitening_filters(images)
    assert torch.equal(filters, whitening_filters(images))


def test_first_layers_filters_and_norms_scales_are_not_trained(images):
    net = SpeedrunNet()
    net.init_from_data(images)
    net(images[:8]).square().sum().backward()
    assert net.patches.weight.grad is None
    assert net.patches.bias.grad.abs().sum() > 0
    assert all(norm.weight.grad is None and norm.bias.grad is not None for norm in net.groups[0].norms)


def test_a_frozen_bias_ends_the_backward_pass_before_the_first_layer():
    net = SpeedrunNet()
    flops = []
    for trained in (True, False):
        net.patches.bias.requires_grad_(trained)
        with FlopCounterMode(display=False) as counter:
            net(torch.randn(1, 3, 32, 32)).sum().backward()
        flops.append(counter.get_total_flops())
    assert flops[0] - flops[1] == 2 * 24 * 64 * 9 * 30 * 30  # the first 3x3 convolution's gradient of its input


def test_whitening_can_be_switched_off(images):
    net = SpeedrunNet(whiten=False)
    before = net.patches.weight.clone()
    net.init_from_data(images)
    assert torch.equal(net.patches.weight, before)
    net(images[:8]).sum().backward()
    assert net.patches.weight.grad is not None


# Initialisation


def test_identity_init_passes_the_input_on():
    net = SpeedrunNet(depth=3)
    for conv_group in net.groups:
        first, *others = conv_group.convs
        features = torch.randn(2, first.in_channels, 7, 7)
        torch.testing.assert_close(first(features)[:, : first.in_channels], features)
        features = torch.randn(2, first.out_channels, 7, 7)
        for conv in others:
            torch.testing.assert_close(conv(features), features)


def test_identity_init_leaves_the_other_filters_random():
    torch.manual_seed(0)
    with_identity = group().convs[0].weight
    torch.manual_seed(0)
    without = group(identity_init=False).convs[0].weight
    assert torch.equal(with_identity[4:], without[4:])
    assert not torch.equal(with_identity[:4], without[:4])


def test_fewer_outputs_than_inputs_pass_the_first_inputs_on():
    features = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(group(8, 4).convs[0](features), features[:, :4])


def test_bias_and_head_start_as_asked():
    net = SpeedrunNet(zero_bias=True, unit_head=False)
    assert not net.patches.bias.any()
    assert net.head.weight.abs().max() <= 1 / 16  # torch's init for 256 inputs
    net = SpeedrunNet()
    assert 0 < net.patches.bias.abs().max() <= 12**-0.5  # torch's init for 12 inputs
    assert net.head.weight.std().item() == pytest.approx(1)


def test_logits_are_scaled():
    nets = [SpeedrunNet(logit_scale=scale).eval() for scale in (1.0, 0.25)]
    nets[1].load_state_dict(nets[0].state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(nets[0](images) * 0.25, nets[1](images))


# Groups


def test_group_pools_before_its_norm():
    conv_group, features = group(), torch.randn(16, 4, 9, 9)
    outputs = conv_group(features)
    pooled = F.max_pool2d(conv_group.convs[0](features), 2)
    normalised = (pooled - pooled.mean((0, 2, 3), keepdim=True)) / pooled.std((0, 2, 3), correction=0, keepdim=True)
    hidden = F.gelu(normalised)  # the second convolution is the identity
    hidden = (hidden - hidden.mean((0, 2, 3), keepdim=True)) / hidden.std((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(outputs, F.gelu(hidden), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(conv_group.norms[0].running_mean, 0.4 * pooled.mean((0, 2, 3)))


def test_third_convolution_is_added_to_the_shortcut():
    conv_group, features = group(depth=3).eval(), torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        conv_group.convs[2].weight.mul_(3)
    shortcut = F.gelu(F.max_pool2d(conv_group.convs[0](features), 2))  # fresh norms in eval mode are the identity
    torch.testing.assert_close(conv_group(features), F.gelu(3 * F.gelu(shortcut) + shortcut))


# Precision


def test_first_layer_is_computed_in_fp32_under_autocast(images):
    net = SpeedrunNet()
    net.init_from_data(images)
    expected = F.conv2d(images, net.patches.weight, net.patches.bias)
    assert torch.equal(net.patches(images), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.patches(images), expected)
    low = net.patches.bfloat16()  # as with trainer.precision=bf16-true
    expected = F.conv2d(images.bfloat16().float(), low.weight.float(), low.bias.float()).bfloat16()
    assert torch.equal(low(images.bfloat16()), expected)


def test_bf16_is_close_to_fp32(images):
    net = SpeedrunNet()
    net.init_from_data(images)
    for images_of_size in (images[:64], F.interpolate(images[:16], (32, 32))):
        expected = net(images_of_size)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(images_of_size)
        assert (logits - expected).norm() < 0.02 * expected.norm()
    assert all(buffer.dtype in (torch.float32, torch.int64) for buffer in net.buffers())


# Parameters, state and arguments


def test_every_trained_parameter_has_one_kind():
    net = SpeedrunNet()
    kinds = net.parameter_kinds()
    assert {kind: len(parameters) for kind, parameters in kinds.items()} == {
        "whiten_bias": 1,
        "norm": 6,
        "filters": 6,
        "head": 1,
    }
    listed = [id(parameter) for parameters in kinds.values() for parameter in parameters]
    assert sorted(listed) == sorted(id(parameter) for parameter in net.parameters() if parameter.requires_grad)
    assert len(SpeedrunNet(whiten=False).parameter_kinds()["filters"]) == 7
    net.patches.bias.requires_grad_(False)
    assert net.parameter_kinds()["whiten_bias"] == []


def test_state_dict_holds_all_of_it(images):
    net = SpeedrunNet(widths=(16, 24, 8), depth=3)
    net.init_from_data(images)
    net(images[:32])  # moves the running statistics
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = SpeedrunNet(widths=(16, 24, 8), depth=3)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.eval()(images[:4]), net.eval()(images[:4]))
    assert not other.patches.weight.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": [64, 256]}, r"^widths must be three whole numbers in \[1, 4096\], got \[64, 256\]$"),
        ({"widths": [64, 0, 256]}, r"^widths must be three whole numbers in \[1, 4096\], got \[64, 0, 256\]$"),
        ({"widths": [64, 256, 10**400]}, r"^widths must be three whole numbers in \[1, 4096\]"),
        ({"widths": [64, 256, "a"]}, r"^widths must be a list, each item a whole number, got \[64, 256, 'a'\]$"),
        ({"widths": [64, 256, True]}, "^widths must be a list, each item a whole number"),
        ({"widths": 64}, "^widths must be a list, each item a whole number, got 64$"),
        ({"depth": 4}, "^depth must be 2 or 3, or three such numbers, got 4$"),
        ({"depth": 2.0}, "^depth must be a whole number or a list, each item a whole number, got 2.0$"),
        ({"whiten": 1}, "^whiten must be true or false, got 1$"),
        ({"logit_scale": 0}, r"^logit_scale must be in \(0, 1\], got 0$"),
        ({"logit_scale": 10**400}, r"^logit_scale must be in \(0, 1\], got 1000"),
        ({"logit_scale": float("nan")}, "^logit_scale must be a finite number, got nan$"),
        ({"bn_momentum": 1.5}, r"^bn_momentum must be in \(0, 1\], got 1.5$"),
        ({"width": [64]}, "^width is not an argument of speedrun; it takes bn_momentum, depth, "),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        build("speedrun", num_classes=10, in_channels=3, **arguments)


def test_depth_of_each_group():
    net = SpeedrunNet(widths=(16, 24, 8), depth=[2, 2, 3])
    assert [len(group.convs) for group in net.groups] == [2, 2, 3]
    with pytest.raises(ValueError, match=r"depth must be 2 or 3, or three such numbers, got \[2, 3\]"):
        SpeedrunNet(depth=[2, 3])
