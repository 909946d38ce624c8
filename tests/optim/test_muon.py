import copy
import math

import pytest
import torch
from conftest import no_synchronizing
from torch import nn

from cifar_lightning import models
from cifar_lightning.optim.builders import muon, parameter_kinds
from cifar_lightning.optim.muon import Muon, newton_schulz


def random_matrices(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def polar_factor(matrices: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    return u @ vh


def quintic(values: torch.Tensor, steps: int) -> torch.Tensor:
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


# Newton-Schulz


@pytest.mark.parametrize("shape", [(1, 24, 96), (2, 96, 24), (1, 16, 16), (3, 12, 40), (6, 9, 5)])
@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_newton_schulz_maps_the_singular_values_and_keeps_their_vectors(shape, steps):
    matrices = random_matrices(*shape)
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    expected = u @ torch.diag_embed(quintic(s / s.norm(dim=-1, keepdim=True), steps)) @ vh
    torch.testing.assert_close(newton_schulz(matrices, steps=steps, dtype=torch.float64), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_three_steps_come_close_to_the_polar_factor(dtype):
    matrices = random_matrices(2, 24, 96).float()
    orthogonal = newton_schulz(matrices, steps=3, dtype=dtype)
    assert orthogonal.dtype == torch.float32
    values = torch.linalg.svdvals(orthogonal)
    assert 0.65 < values.min() < values.max() < 1.25
    error = (orthogonal - polar_factor(matrices)).norm(dim=(1, 2)) / math.sqrt(24)  # relative to the factor's norm
    assert (error < 0.25).all()
    cosine = nn.functional.cosine_similarity(orthogonal.flatten(1), polar_factor(matrices).flatten(1))
    assert (cosine > 0.97).all()


def test_more_steps_come_closer_where_singular_values_are_small():
    u, _, vh = torch.linalg.svd(random_matrices(1, 20, 50), full_matrices=False)
    matrix = u @ torch.diag_embed(torch.logspace(0, -3, 20, dtype=torch.float64)) @ vh
    polar = polar_factor(matrix)
    errors = [(newton_schulz(matrix, steps=steps, dtype=torch.float64) - polar).norm() for steps in (1, 3, 5, 8)]
    assert errors == sorted(errors, reverse=True)


def test_newton_schulz_does_not_depend_on_the_scale_and_keeps_zeros():
    matrices = random_matrices(2, 5, 8)
    scaled = newton_schulz(2.0**-12 * matrices, dtype=torch.float64)
    torch.testing.assert_close(scaled, newton_schulz(matrices, dtype=torch.float64), atol=1e-3, rtol=0)
    assert torch.equal(newton_schulz(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


# The optimizer


class TinyNet(nn.Module):
    """Three convolutions of two shapes, a batch norm with a frozen scale, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1, bias=False) for pair in ((3, 6), (6, 6), (6, 6)))
        self.norm = nn.BatchNorm2d(6)
        self.norm.weight.requires_grad_(False)
        self.head = nn.Linear(6, 4, bias=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for conv in self.convs:
            images = nn.functional.gelu(self.norm(conv(images)))
        return self.head(images.mean((2, 3)))


def batches(num_batches: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 6, 6, generator=generator), torch.arange(8) % 4) for _ in range(num_batches)]


def train(net: nn.Module, optimizer: torch.optim.Optimizer, data: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for images, targets in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), targets).backward()
        optimizer.step()


def make_muon(net: nn.Module) -> Muon:
    optimizer = muon(net, lr=0.2, momentum=0.6, head_lr=0.5, norm_lr=0.3, sgd_momentum=0.85, weight_decay=0.002)
    assert isinstance(optimizer, Muon)
    return optimizer


def assert_same_weights(one: nn.Module, other: nn.Module, **tolerance: float) -> None:
    for (name, weight), expected in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(weight, expected, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton-Schulz in float32 on every CPU: in bf16, other orders of a sum give clearly different results."""
    monkeypatch.setattr("cifar_lightning.optim.muon.multiplies_bf16", {"cpu": False}.__getitem__)


@pytest.mark.usefixtures("exact")
def test_steps_equal_a_reference_written_by_hand():
    net, by_hand = TinyNet(), TinyNet()
    train(net, make_muon(net), batches(5))
    buffers = {name: torch.zeros_like(p) for name, p in by_hand.named_parameters()}
    rates = {"head.weight": 0.5, "norm.bias": 0.3}
    for images, targets in batches(5):
        by_hand.zero_grad()
        nn.functional.cross_entropy(by_hand(images), targets).backward()
        with torch.no_grad():
            for name, weight in by_hand.named_parameters():
                if not weight.requires_grad:
                    continue
                buffer, gradient = buffers[name], weight.grad
                if name in rates:
                    gradient = gradient + 0.002 / rates[name] * weight
                    buffer.copy_(0.85 * buffer + gradient)
                    weight -= rates[name] * (gradient + 0.85 * buffer)
                else:
                    buffer.copy_(0.6 * buffer + gradient)
                    update = newton_schulz((gradient + 0.6 * buffer).reshape(1, 6, -1), steps=3, dtype=torch.float32)
                    weight *= math.sqrt(6) / weight.norm()
                    weight -= 0.2 * update.reshape(weight.shape)
    assert_same_weights(net, by_hand, atol=1e-4, rtol=1e-4)


def test_sgd_groups_equal_torchs_sgd():
    net, reference = TinyNet(), TinyNet()
    train(net, Muon(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, kind="sgd"), batches(5))
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    train(reference, torch.optim.SGD(reference.parameters(), **options), batches(5))
    assert_same_weights(net, reference)


def test_an_update_starts_from_a_norm_of_sqrt_of_out_channels_and_has_the_size_of_the_learning_rate():
    weight = nn.Parameter(5 * torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
    unit = math.sqrt(8) / weight.detach().norm() * weight.detach()
    weight.grad = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    Muon([weight], lr=0.1).step()
    values = torch.linalg.svdvals((weight.detach() - unit).flatten(1)) / 0.1
    assert 0.6 < values.min() < values.max() < 1.3


@pytest.mark.usefixtures("exact")
def test_filters_of_one_shape_are_updated_as_if_alone():
    generator = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in [(4, 2, 3, 3), (4, 4, 1, 1)] * 2]
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)
    alone = copy.deepcopy(weights)
    for weight, original in zip(alone, weights, strict=True):
        weight.grad = original.grad.clone()
        Muon([weight], lr=0.1).step()
    Muon(weights, lr=0.1).step()
    for weight, expected in zip(weights, alone, strict=True):
        torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_newton_schulz_has_a_precision_that_the_device_multiplies(has_bf16, dtype, monkeypatch):
    monkeypatch.setattr("cifar_lightning.optim.muon.multiplies_bf16", {"cpu": has_bf16}.__getitem__)
    weight = nn.Parameter(torch.zeros(24, 96))
    weight.grad = random_matrices(24, 96).float()
    Muon([weight], lr=1.0, momentum=0.0).step()
    errors = {
        precision: (-weight.detach() - newton_schulz(weight.grad[None], dtype=precision)[0]).norm()
        for precision in (torch.bfloat16, torch.float32)
    }
    assert min(errors, key=errors.__getitem__) is dtype
    assert errors[dtype] < 0.1 * max(errors.values())


@pytest.mark.usefixtures("exact")
def test_compiled_muon_does_the_same():
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    net, compiled = TinyNet(), TinyNet()
    optimizer = make_muon(compiled)
    optimizer.compile(backend=backend, dynamic=False)
    train(net, make_muon(net), batches(3))
    train(compiled, optimizer, batches(3))
    assert calls
    assert_same_weights(compiled, net, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("fill_up", [False, True])
def test_filters_of_any_shape_become_orthogonal_as_if_alone(fill_up):
    shapes = [(8, 3, 3, 3), (8, 8, 3, 3), (8, 3, 3, 3), (16, 8, 3, 3), (16, 3, 1, 1), (4, 8)]
    filters = [random_matrices(*shape).float() for shape in shapes]
    directions = Muon(filters, lr=0.1)._orthogonal(filters, ns_steps=3, fill_up=fill_up)
    for weight, direction in zip(filters, directions, strict=True):
        alone = newton_schulz(weight.flatten(1)[None], dtype=torch.float32)
        torch.testing.assert_close(direction, alone.view(weight.shape), atol=1e-4, rtol=0)


def test_a_group_at_learning_rate_zero_does_not_change():
    net = TinyNet()
    optimizer = make_muon(net)
    train(net, optimizer, batches(2))
    before, state = copy.deepcopy(net), copy.deepcopy(optimizer.state_dict()["state"])
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(net, optimizer, batches(2))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before.parameters(), strict=True))
    for index, buffers in optimizer.state_dict()["state"].items():
        assert torch.equal(buffers["momentum_buffer"], state[index]["momentum_buffer"])


def test_parameters_without_gradients_do_not_change():
    net = TinyNet()
    optimizer = make_muon(net)
    optimizer.step()
    assert optimizer.state_dict()["state"] == {}
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), TinyNet().parameters(), strict=True))


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=str)
def each_precision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newton-Schulz in either precision, as on CPUs with and without bf16 instructions."""
    has_bf16 = request.param is torch.bfloat16
    monkeypatch.setattr("cifar_lightning.optim.muon.multiplies_bf16", {"cpu": has_bf16}.__getitem__)


@pytest.mark.usefixtures("each_precision")
def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(tmp_path):
    net, data = TinyNet(), batches(6)
    optimizer = make_muon(net)
    train(net, optimizer, data[:3])
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    train(net, optimizer, data[3:])
    resumed = TinyNet()
    other = make_muon(resumed)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(saved["net"])
    other.load_state_dict(saved["optimizer"])
    train(resumed, other, data[3:])
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), resumed.parameters(), strict=True))
    assert all(
        torch.equal(optimizer.state[a]["momentum_buffer"], other.state[b]["momentum_buffer"])
        for a, b in zip(net.parameters(), resumed.parameters(), strict=True)
        if a.requires_grad
    )


@pytest.mark.usefixtures("each_precision")
def test_training_is_deterministic_and_learns():
    nets = [TinyNet(), TinyNet()]
    data = batches(1) * 20
    losses = []
    for net in nets:
        before = nn.functional.cross_entropy(net(data[0][0]), data[0][1])
        train(net, muon(net, lr=0.1, head_lr=0.1), data)
        losses.append((before.item(), nn.functional.cross_entropy(net(data[0][0]), data[0][1]).item()))
    assert losses[0] == losses[1]
    assert losses[0][1] < losses[0][0] / 2
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_step_calls_a_closure_with_gradients_enabled():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([weight], lr=0.1)

    def closure() -> torch.Tensor:
        loss = weight.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert weight.grad is not None


def test_bad_groups():
    with pytest.raises(ValueError, match="kind must be one of muon, sgd, got 'adam'"):
        Muon([nn.Parameter(torch.zeros(2, 2))], lr=0.1, kind="adam")
    with pytest.raises(ValueError, match="parameters of a muon group must be of rank 2 at least"):
        Muon([nn.Parameter(torch.zeros(2))], lr=0.1)


# Groups by kind


@pytest.mark.parametrize("name", ["tutorial", "resnet18"])
def test_each_trainable_parameter_is_in_one_group(name):
    net = models.build(name, num_classes=10, in_channels=3)
    next(net.parameters()).requires_grad_(False)
    groups = muon(net, lr=0.1, norm_lr=0.2, head_lr=0.3, weight_decay=0.06).param_groups
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert sorted(map(id, grouped)) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    assert [{p.ndim for p in group["params"]} for group in groups] == [{4}, {2}, {1}]
    assert [(group["kind"], group["lr"]) for group in groups] == [("muon", 0.1), ("sgd", 0.3), ("sgd", 0.2)]
    assert [group["weight_decay"] for group in groups] == pytest.approx([0, 0.2, 0.3])  # each times its rate is 0.06


class Whitened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        self.conv = nn.Conv2d(24, 4, 3, bias=False)
        self.head = nn.Linear(4, 2, bias=False)
        self.kinds = {"filters": [self.conv.weight], "head": [self.head.weight], "norm": []}

    def parameter_kinds(self) -> dict[str, list[nn.Parameter]]:
        return self.kinds | {"whiten_bias": [self.whiten.bias]}


def test_a_network_can_name_the_kinds_of_its_parameters():
    net = Whitened()
    groups = muon(net, lr=0.1, whiten_bias_lr=0.4).param_groups
    assert [len(group["params"]) for group in groups] == [1, 1, 1]
    assert groups[-1]["params"] == [net.whiten.bias]
    assert groups[-1]["lr"] == 0.4


@pytest.mark.parametrize("kinds", [{"head": []}, {"filters": []}, {"biases": []}])
def test_kinds_that_miss_or_repeat_a_parameter_or_are_unknown_are_refused(kinds):
    net = Whitened()
    net.kinds |= kinds
    with pytest.raises(AssertionError, match="parameter_kinds must"):
        parameter_kinds(net)
    net.kinds = Whitened().kinds | {"norm": [net.head.weight]}
    with pytest.raises(AssertionError, match="parameter_kinds must"):
        parameter_kinds(net)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -0.1}, r"lr must be a finite number of at least 0, got -0\.1"),
        ({"head_lr": math.nan}, "head_lr must be a finite number of at least 0, got nan"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1\.0"),
        ({"sgd_momentum": -0.1}, r"sgd_momentum must be in \[0, 1\), got -0\.1"),
        ({"ns_steps": 0}, "ns_steps must be at least 1, got 0"),
    ],
)
def test_bad_hyper_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        muon(TinyNet(), **{"lr": 0.1} | arguments)


@pytest.mark.gpu
def test_a_step_does_not_wait_for_a_gpu():
    net = TinyNet().cuda()
    optimizer = make_muon(net)
    images, targets = (tensor.cuda() for tensor in batches(1)[0])
    train(net, optimizer, [(images, targets)])
    before = [parameter.detach().clone() for parameter in net.parameters()]
    with no_synchronizing():  # whatever waits raises
        optimizer.step()
    assert not all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
