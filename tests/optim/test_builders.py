import math

import pytest
import torch
from torch import nn

from cifar_lightning.models.speedrun import SpeedrunNet
from cifar_lightning.optim.builders import adamw, muon, sgd, sgd_by_kind
from cifar_lightning.optim.freeze import end_early
from cifar_lightning.optim.schedules import cosine, triangular


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("build", [sgd, adamw])
def test_no_decay_on_biases_and_norms(build, net):
    decayed, free = build(net, lr=0.1, weight_decay=0.5).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert [tuple(p.shape) for p in free["params"]] == [(4,), (4,), (4,), (2,)]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.5, 0.0)


@pytest.mark.parametrize("build", [sgd, adamw])
def test_frozen_parameters_are_in_no_group(build, net):
    net[0].weight.requires_grad_(False)
    num_optimized = sum(len(group["params"]) for group in build(net, lr=0.1).param_groups)
    assert num_optimized == len(list(net.parameters())) - 1


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (
            lambda net: sgd(net, lr=0.1, momentum=0.9, nesterov=True),
            lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True),
        ),
        (
            lambda net: adamw(net, lr=0.01, weight_decay=0.0),
            lambda net: torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.0),
        ),
    ],
)
def test_steps_equal_torchs_plain_optimizer(ours, reference):
    nets = []
    for build in (ours, reference):
        torch.manual_seed(0)
        net = nn.Linear(5, 3)
        optimizer = build(net)
        for _ in range(10):
            optimizer.zero_grad()
            net(torch.ones(2, 5)).square().sum().backward()
            optimizer.step()
        nets.append(net)
    torch.testing.assert_close(nets[0].weight, nets[1].weight)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (sgd, {"lr": -1.0}, r"lr must be a finite number of at least 0, got -1\.0"),
        (sgd, {"lr": math.nan}, "lr must be a finite number of at least 0, got nan"),
        (sgd, {"lr": 0.1, "momentum": -0.1}, "momentum must be"),
        (sgd, {"lr": 0.1, "nesterov": True}, "nesterov must be false where momentum is 0"),
        (adamw, {"lr": 0.1, "betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\)"),
        (adamw, {"lr": 0.1, "weight_decay": -1.0}, "weight_decay must be"),
        (sgd_by_kind, {"lr": -1.0, "norm_lr": 0.1}, r"^lr must be a finite number of at least 0, got -1\.0"),
        (sgd_by_kind, {"lr": 0.1, "norm_lr": math.inf}, "norm_lr must be a finite number of at least 0, got inf"),
        (sgd_by_kind, {"lr": 0.1, "norm_lr": 0.1, "momentum": 0.0}, "momentum must be above 0 for Nesterov"),
        (sgd_by_kind, {"lr": 0.1, "norm_lr": 0.1, "momentum": 1.0}, r"momentum must be in \[0, 1\), got 1\.0"),
    ],
)
def test_bad_hyper_parameters(build, arguments, message, net):
    with pytest.raises(ValueError, match=message):
        build(net, **arguments)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (cosine(), [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0]),
        (cosine(warmup_fraction=0.5, end_factor=0.2), [0, 0.5, 1, 0.6, 0.2]),
        (triangular(warmup_fraction=0.0), [1, 0.75, 0.5, 0.25, 0]),
        (triangular(warmup_fraction=0.25), [0, 1, 2 / 3, 1 / 3, 0]),
        (triangular(warmup_fraction=0.5, end_factor=0.5), [0, 0.5, 1, 0.75, 0.5]),
        (triangular(warmup_fraction=0.5, start_factor=0.2), [0.2, 0.6, 1, 0.5, 0]),
    ],
)
def test_factors(schedule, factors):
    assert [schedule(progress) for progress in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(factors)


@pytest.mark.parametrize("build", [cosine, triangular])
def test_bad_schedules(build):
    with pytest.raises(ValueError, match=r"warmup_fraction must be in \[0, 1\), got 1\.0"):
        build(warmup_fraction=1.0)
    with pytest.raises(ValueError, match=r"end_factor must be in \[0, 1\], got -0\.5"):
        build(end_factor=-0.5)


def test_bad_start_factor():
    with pytest.raises(ValueError, match=r"start_factor must be in \[0, 1\], got 2\.0"):
        triangular(start_factor=2.0)


def test_sgd_by_kind_equals_torchs_sgd_with_rates_and_decay_by_kind():
    nets = []
    for ours in (True, False):
        torch.manual_seed(0)
        net = SpeedrunNet(widths=(4, 4, 4))
        norms = net.parameter_kinds()["norm"]
        others = [p for p in net.parameters() if p.requires_grad and all(p is not norm for norm in norms)]
        by_hand = [
            {"params": others, "lr": 0.1, "weight_decay": 0.02 / 0.1},
            {"params": norms, "lr": 0.4, "weight_decay": 0.02 / 0.4},
        ]
        optimizer = (
            sgd_by_kind(net, lr=0.1, norm_lr=0.4, momentum=0.8, weight_decay=0.02)
            if ours
            else torch.optim.SGD(by_hand, momentum=0.8, nesterov=True)
        )
        for _ in range(5):
            optimizer.zero_grad()
            net(torch.linspace(-1, 1, 2 * 3 * 256).reshape(2, 3, 16, 16).sin()).square().sum().backward()
            optimizer.step()
        nets.append(net)
    for name, value in nets[0].state_dict().items():
        torch.testing.assert_close(value, nets[1].state_dict()[name])


# FreezeOut


@pytest.mark.parametrize(
    "build",
    [
        lambda net: sgd(net, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda net: muon(net, lr=0.1, head_lr=0.2, norm_lr=0.3),
    ],
    ids=["sgd", "muon"],
)
def test_parts_that_end_early_keep_all_else_of_their_groups(build, net):
    whole, split = build(net), build(net)
    end_early(split, net, {"0": 0.5, "0.bias": 0.25, "1": 0.5})
    settings = {
        id(parameter): {key: value for key, value in group.items() if key != "params"}
        for group in whole.param_groups
        for parameter in group["params"]
    }
    ends = {}
    for group in split.param_groups:
        for parameter in group["params"]:
            ends[id(parameter)] = group.get("end_fraction")
            assert {key: group[key] for key in settings[id(parameter)]} == settings[id(parameter)]
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    assert {names[key]: end for key, end in ends.items()} == {
        "0.weight": 0.5,
        "0.bias": 0.25,
        "1.weight": 0.5,
        "1.bias": 0.5,
        "3.weight": None,
        "3.bias": None,
    }


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ({"0": 0.0}, r"0 must be in \(0, 1\), got 0\.0"),
        ({"0": math.nan}, r"0 must be in \(0, 1\), got nan"),
        ({"9": 0.5}, "9 must name a part of the network that is trained: 0, 1, 2, 3 or what they hold"),
        ({"0": 0.5, "1": 0.5, "3": 0.5}, "0, 1, 3 must leave a part of the network that is trained to the end"),
        ({"2": 0.5}, "2 must name a part of the network that is trained"),
        ({"0.wei": 0.5}, r"0\.wei must name a part of the network that is trained"),
    ],
)
def test_bad_parts(ends, message, net):
    with pytest.raises(ValueError, match=message):
        end_early(sgd(net, lr=0.1), net, ends)
