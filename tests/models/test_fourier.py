import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_lightning.config.resolve import plain
from cifar_lightning.device import threads
from cifar_lightning.models import fourier, speedrun
from cifar_lightning.models.fourier import MIN_BATCH, fourier_conv2d
from cifar_lightning.models.speedrun import SpeedrunNet

SIZES = [(7, 7), (6, 6), (3, 3), (1, 1), (15, 15), (10, 10), (7, 12), (9, 2)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def with_gradients(outputs: Tensor, *inputs: Tensor) -> list[Tensor]:
    upstream = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)).to(outputs)
    return [outputs, *torch.autograd.grad(outputs, inputs, upstream)]


def maps(num_images: int, channels: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    features = torch.randn(num_images, channels, *size, dtype=dtype)
    return features.to(memory_format=torch.channels_last).requires_grad_()


# The convolution


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dropped", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("block_bytes", [1, 10_000, fourier.BLOCK_BYTES])  # one image at a time, some, all
def test_it_equals_a_direct_convolution(size, dropped, block_bytes, monkeypatch):
    monkeypatch.setattr(fourier, "BLOCK_BYTES", block_bytes)
    kept = (max(size[0] - dropped[0], 1), max(size[1] - dropped[1], 1))
    features, filters = maps(5, 3, size, torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64).requires_grad_()
    found = with_gradients(fourier_conv2d(features, filters, kept), features, filters)
    expected = with_gradients(F.conv2d(features, filters, padding=1)[:, :, : kept[0], : kept[1]], features, filters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_has_second_derivatives():
    features, filters = maps(2, 2, (3, 3), torch.float64), torch.randn(2, 2, 3, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda *inputs: fourier_conv2d(*inputs, (3, 2)), (features, filters))


def test_outputs_are_channels_last():
    outputs = fourier_conv2d(torch.randn(4, 3, 7, 7), torch.randn(5, 3, 3, 3), (7, 7))
    assert outputs.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(7, 7), (15, 15)])
def test_errors_under_autocast_are_those_of_bf16_rounding(size):
    features, filters = maps(32, 64, size, torch.float32), torch.randn(64, 64, 3, 3).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(fourier_conv2d(features, filters, size), features, filters)
    assert found[0].dtype is torch.bfloat16
    for one, exact in zip(
        found, with_gradients(F.conv2d(features, filters, padding=1), features, filters), strict=True
    ):
        # One rounding to bf16 has an error of 0.17 % (root mean square); six or seven in a row have 0.4 to 0.45 %.
        assert (one.float() - exact).norm() < 0.006 * exact.norm()


def test_training_can_use_matrices_that_inference_has_cached():
    fourier._transform.cache_clear()
    fourier._shifts.cache_clear()
    features, filters = torch.randn(2, 3, 5, 5), nn.Parameter(torch.randn(4, 3, 3, 3))
    with torch.inference_mode():
        expected = fourier_conv2d(features, filters, (5, 5)).clone()
    outputs = fourier_conv2d(features, filters, (5, 5))
    outputs.sum().backward()
    torch.testing.assert_close(outputs, expected)
    assert filters.grad is not None


# The transform


@pytest.mark.parametrize("period", [2, 4, 6, 8, 12, 16])
def test_a_shift_maps_each_pair_of_coefficients_to_itself(period):
    dense = fourier._dense(*fourier._bases(period))
    torch.testing.assert_close(dense @ dense.T, torch.eye(period**2, dtype=torch.float64))
    shifted = dense.view(-1, period, period).roll((1, -1), (1, 2)).flatten(1) @ dense.T
    pairs = torch.block_diag(*[torch.ones(2, 2, dtype=torch.float64)] * (period**2 // 2))
    torch.testing.assert_close(shifted * (1 - pairs), torch.zeros_like(shifted))


@pytest.mark.parametrize("size", [(7, 7), (15, 15), (4, 11)])
def test_analysis_is_the_matrix_and_synthesis_its_transpose(size):
    period = max(size) + 1
    pixels = torch.randn(6, *size, 3, dtype=torch.float64)
    spectra = fourier._analysed(pixels, period)
    dense = fourier._transform(period, *size, torch.float64).dense
    expected = torch.einsum("fx,nxc->fnc", dense, pixels.flatten(1, 2)).unflatten(0, (-1, 2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(spectra, expected)
    torch.testing.assert_close(fourier._synthesised(spectra, period, *size), pixels)


# The network


@pytest.fixture
def calls(monkeypatch):
    """Heights of the maps that were convolved in the Fourier domain, in order."""
    found = []
    monkeypatch.setattr(
        speedrun,
        "fourier_conv2d",
        lambda features, *rest: found.append(features.shape[2]) or fourier_conv2d(features, *rest),
    )
    return found


def networks(**arguments: object) -> list[SpeedrunNet]:
    nets = [SpeedrunNet(widths=(48, 48, 64), fourier=choice, **arguments).double() for choice in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    return nets


@pytest.mark.parametrize(
    ("depth", "size", "heights"),
    [
        # All convolutions except the first one, which has 24 input channels.
        (2, (18, 18), [8, 8, 4, 4, 2]),
        (3, (18, 18), [8, 8, 8, 4, 4, 4, 2, 2]),
        (2, (16, 20), [7, 7, 3, 3, 1]),  # maps of 7x9 and 3x4: pooling drops the last rows and columns
    ],
)
def test_the_network_computes_the_same_up_to_rounding(depth, size, heights, calls):
    images = torch.randn(MIN_BATCH, 3, *size, dtype=torch.float64)
    direct, by_fourier = (
        with_gradients(net(images), *(parameter for parameter in net.parameters() if parameter.requires_grad))
        for net in networks(depth=depth)
    )
    assert calls == heights
    for one, other in zip(direct, by_fourier, strict=True):
        torch.testing.assert_close(one, other)


def test_few_images_are_convolved_directly(calls):
    images = torch.randn(MIN_BATCH - 1, 3, 12, 12, dtype=torch.float64)
    direct, by_fourier = (net(images) for net in networks())
    torch.testing.assert_close(direct, by_fourier)
    assert calls == []


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("is_bf16", [False, True])
def test_the_same_images_give_the_same_bits(is_bf16, num_threads, calls):
    net, images = networks()[1].float(), torch.randn(MIN_BATCH, 3, 18, 18)
    with threads(num_threads), torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        first, second = (with_gradients(net(images), *net.head.parameters(), net.patches.bias) for _ in range(2))
    assert len(calls) == 10
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_compiled_network_convolves_directly(calls, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks cannot be traced
    (direct, compiled), images = (net.float() for net in networks()), torch.randn(MIN_BATCH, 3, 18, 18)
    compiled.compile(backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(images), direct(images))
    assert calls == []


@pytest.mark.parametrize(
    ("shape", "device", "expected"),
    [
        ((256, 48, 15, 15), "cpu", True),
        ((255, 48, 15, 15), "cpu", False),
        ((256, 24, 15, 15), "cpu", False),
        ((256, 48, 15, 17), "cpu", False),
        ((256, 48, 15, 15), "meta", False),
    ],
)
def test_is_faster_for_many_images_and_channels_on_a_cpu(shape, device, expected):
    assert fourier.is_faster(torch.empty(shape, device=device)) is expected


def test_speedruns_for_cpus_use_it_and_airbench94_does_not(compose):
    assert plain(compose("experiment=speedrun"))["model"]["fourier"] is True
    assert plain(compose("experiment=speedrun95"))["model"]["fourier"] is True
    assert plain(compose("experiment=speedrun_gpu"))["model"]["fourier"] is False
