from collections import Counter

import pytest
import torch

from cifar_lightning.augment import CropFlip, random_crop, random_flip


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(1, 256, (300, 3, 8, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shifted_by_loop(image: torch.Tensor, dy: int, dx: int, mode: str) -> torch.Tensor:
    pad = torch.nn.functional.pad(image[None].float(), (3, 3, 3, 3), mode=mode)[0].to(torch.uint8)
    return pad[:, 3 + dy : 3 + dy + image.shape[1], 3 + dx : 3 + dx + image.shape[2]]


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_is_one_of_the_shifts_of_each_image(images, mode, channels):
    images = images[:, :channels]
    cropped = random_crop(images, seeded(), padding=3, mode=mode)
    shifts = [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)]
    found = Counter()
    for image, crop in zip(images, cropped, strict=True):
        matching = [shift for shift in shifts if torch.equal(crop, shifted_by_loop(image, *shift, mode))]
        assert len(matching) == 1
        found[matching[0]] += 1
    assert len(found) >= 48  # of 49 shifts in 300 draws; 0.1 are missing on average
    assert max(found.values()) <= 18  # 6 on average
    assert cropped.dtype == torch.uint8


def test_no_padding_changes_nothing(images):
    assert torch.equal(random_crop(images, seeded(), padding=0, mode="constant"), images)


def test_flip_mirrors_about_half_of_the_images(images):
    flipped = random_flip(images, seeded())
    is_flipped = [torch.equal(new, old.flip(-1)) for new, old in zip(flipped, images, strict=True)]
    is_same = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    assert [a != b for a, b in zip(is_flipped, is_same, strict=True)] == [True] * 300
    assert 120 < sum(is_flipped) < 180


def test_crop_flip_is_a_crop_then_a_flip_from_one_stream(images):
    generator = seeded(7)
    expected = random_flip(random_crop(images, generator, padding=2, mode="reflect"), generator)
    assert torch.equal(CropFlip(padding=2, mode="reflect")(images, 0, seeded(7)), expected)


def test_the_generator_alone_decides(images):
    augment = CropFlip(padding=2)
    torch.manual_seed(1)
    first = augment(images, 0, seeded())
    torch.manual_seed(2)
    assert torch.equal(augment(images, 0, seeded()), first)
    assert not torch.equal(augment(images, 0, seeded(1)), first)


def test_bad_padding(images):
    with pytest.raises(ValueError, match=r"padding must be in \[0, 8\), got 8"):
        random_crop(images, seeded(), padding=8, mode="constant")
    with pytest.raises(ValueError, match="padding must be at least 0, got -1"):
        CropFlip(padding=-1)
