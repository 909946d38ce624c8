"""Corruptions: what they keep, what they change, and that more severity is more of the same."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_lightning.corruptions import SEVERITIES, corrupt, kinds

SIZES = ((32, 32), (1, 1), (1, 9), (7, 5), (20, 33))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(num_images: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Images of soft shapes: of pure noise, a blur would leave nothing that a wider one could take."""
    coarse = torch.rand(num_images, channels, 6, 6, generator=seeded(1))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (255 * fine).clamp(0, 255).to(torch.uint8)


def error(images: torch.Tensor, changed: torch.Tensor) -> float:
    return (images.double() - changed.double()).square().mean().item()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", kinds(3))
def test_any_image_keeps_its_form_and_the_seed_decides_all(kind, size, channels):
    if kind not in kinds(channels):
        return
    images = smooth(5, *size, channels)
    before = images.clone()
    for severity in SEVERITIES:
        changed = corrupt(images, kind, severity, seeded())
        assert (changed.shape, changed.dtype) == (images.shape, torch.uint8)
        assert torch.equal(changed, corrupt(images, kind, severity, seeded()))
    assert torch.equal(images, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("kind", kinds(3))
def test_more_severity_is_a_larger_change(kind, size, channels):
    if kind not in kinds(channels):
        return
    images = smooth(60, size, size, channels)
    errors = [error(images, corrupt(images, kind, severity, seeded())) for severity in SEVERITIES]
    assert errors[0] > 0
    assert errors == sorted(set(errors))


PIXELWISE = ("gaussian_noise", "impulse_noise", "brightness", "contrast", "saturation", "fog", "occlusion")


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(PIXELWISE),
    seed=st.integers(0, 2**32),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_a_pixel_that_is_changed_is_not_brought_back_by_more_severity(kind, seed, size):
    images = torch.randint(256, (3, 3, *size), dtype=torch.uint8, generator=seeded(seed))
    changes = [(corrupt(images, kind, severity, seeded(seed)).int() - images.int()).abs() for severity in SEVERITIES]
    for less, more in itertools.pairwise(changes):
        assert (less <= more + 1).all()  # of what is rounded


@pytest.mark.parametrize("kind", ["gaussian_blur", "motion_blur", "pixelation", "rotation", "translation"])
def test_lengths_are_shares_of_the_image(kind):
    """An image of twice the size is changed as much as the small one, seen from twice as far."""
    small, large = smooth(50, 32, 32), smooth(50, 64, 64)
    for severity in (4, 5):
        one, two = (error(images, corrupt(images, kind, severity, seeded())) for images in (small, large))
        assert two == pytest.approx(one, rel=0.3)


@pytest.mark.parametrize("kind", kinds(3))
def test_a_grey_square_of_one_value_has_nothing_to_blur_or_to_move(kind):
    images = torch.full((4, 3, 16, 16), 128, dtype=torch.uint8)
    changed = corrupt(images, kind, 4, seeded())
    stays = kind in ("gaussian_blur", "motion_blur", "pixelation", "contrast", "saturation", "rotation", "translation")
    stays = stays or kind == "occlusion"  # which covers with this grey
    assert torch.equal(changed, images) == stays


def test_noise_has_its_strength():
    images = torch.full((200, 3, 32, 32), 128, dtype=torch.uint8)
    noisy = corrupt(images, "gaussian_noise", 2, seeded())
    assert (noisy.double() / 255).std().item() == pytest.approx(0.06, rel=0.02)
    salted = corrupt(images, "impulse_noise", 4, seeded())
    for value in (0, 255):
        assert (salted == value).double().mean().item() == pytest.approx(0.05, rel=0.05)


def test_by_hand():
    # 16 cells in 32 pixels: of 2 x 2 pixels, each their mean.
    ramp = (4 * torch.arange(32)).to(torch.uint8).expand(1, 1, 32, 32)
    assert corrupt(ramp, "pixelation", 3, seeded())[0, 0, 7, :6].tolist() == [2, 2, 10, 10, 18, 18]
    row = torch.tensor([[10, 20, 40, 90]], dtype=torch.uint8).expand(1, 1, 4, 4)
    # 0.4 of the contrast about the mean of 40.
    assert corrupt(row, "contrast", 3, seeded())[0, 0, 0].tolist() == [28, 32, 40, 60]
    colours = torch.tensor([200, 100, 50], dtype=torch.uint8).reshape(1, 3, 1, 1)
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert corrupt(colours, "saturation", 5, seeded()).flatten().tolist() == [grey] * 3
    shift = round(255 * 0.12)
    assert corrupt(colours, "brightness", 2, seeded()).flatten().tolist() in (
        [200 + shift, 100 + shift, 50 + shift],
        [200 - shift, 100 - shift, 50 - shift],
    )
    square = corrupt(torch.zeros(1, 1, 10, 10, dtype=torch.uint8), "occlusion", 4, seeded())
    assert (square == 128).sum() == 25


def test_a_blur_is_a_convolution_with_a_gaussian():
    point = torch.zeros(1, 1, 41, 41, dtype=torch.uint8)
    point[0, 0, 20, 20] = 255
    blurred = corrupt(point, "gaussian_blur", 5, seeded()).double()
    sigma = 0.055 * 41
    expected = 255 / (2 * math.pi * sigma**2) * math.exp(-(3**2 + 1) / (2 * sigma**2))
    assert blurred[0, 0, 23, 21].item() == pytest.approx(expected, abs=0.6)


def test_no_such_corruption():
    images = smooth(1, 4, 4)
    for name, severity, given_images in (("frost", 1, images), ("fog", 0, images), ("saturation", 1, images[:, :1])):
        with pytest.raises(ValueError, match=re.escape(f"got '{name}' with {severity}")):
            corrupt(given_images, name, severity, seeded())


def test_the_default_dtype_has_no_part():
    images = smooth(3, 8, 8)
    expected = {kind: corrupt(images, kind, 3, seeded()) for kind in kinds(3)}
    torch.set_default_dtype(torch.float64)
    try:
        for kind, changed in expected.items():
            assert torch.equal(corrupt(images, kind, 3, seeded()), changed), kind
    finally:
        torch.set_default_dtype(torch.float32)
