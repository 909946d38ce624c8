import math
import re
from collections import Counter

import jaxtyping
import pytest
import torch
import torchvision.transforms.functional as TF
from conftest import no_synchronizing

from cifar_lightning.augment import (
    NUM_CACHED,
    CropFlip,
    FlipTranslateCutout,
    Photo,
    alternating_flip,
    cutout,
    flip_coins,
    random_crop,
    random_flip,
    translate,
)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(1, 256, (300, 3, 8, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shifted_by_padding(image: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    pad = torch.nn.functional.pad(image[None].float(), (3, 3, 3, 3), mode="reflect")[0].to(torch.uint8)
    return pad[:, 3 + dy : 3 + dy + image.shape[1], 3 + dx : 3 + dx + image.shape[2]]


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_is_one_of_the_shifts_of_each_image(images, mode, channels):
    images = images[:, :channels]
    cropped = random_crop(images, seeded(), padding=3, mode=mode)
    padded = torch.nn.functional.pad(images.float(), (3, 3, 3, 3), mode=mode).to(torch.uint8)
    shifts = [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)]
    found = Counter()
    for image, crop in zip(padded, cropped, strict=True):
        matching = [(dy, dx) for dy, dx in shifts if torch.equal(crop, image[:, 3 + dy : 11 + dy, 3 + dx : 14 + dx])]
        assert len(matching) == 1
        found[matching[0]] += 1
    assert len(found) >= 48  # of 49 shifts in 300 draws; 0.1 are missing on average
    assert max(found.values()) <= 18  # 6 on average
    assert cropped.dtype == torch.uint8


@pytest.mark.parametrize(("padding", "mode"), [(0, "reflect"), (2, "reflect"), (1, "constant")])
def test_smaller_crops_come_from_anywhere_in_the_padded_images(images, padding, mode):
    size = 6
    crops = random_crop(images, seeded(), padding=padding, mode=mode, size=size)
    assert crops.shape == (300, 3, size, size)
    padded = torch.nn.functional.pad(images.float(), (padding,) * 4, mode=mode).to(torch.uint8)
    found = Counter()
    for image, crop in zip(padded, crops, strict=True):
        windows = image.unfold(1, size, 1).unfold(2, size, 1)  # (C, rows, columns, size, size)
        matching = (windows == crop[:, None, None]).all(dim=(0, 3, 4)).nonzero().tolist()
        assert len(matching) == 1
        found[tuple(matching[0])] += 1
    num_places = (8 + 2 * padding - size + 1) * (11 + 2 * padding - size + 1)
    assert len(found) > 0.9 * num_places
    mean = 300 / num_places
    assert max(found.values()) < mean + 6 * mean**0.5 + 1


@pytest.mark.parametrize("size", [0, 9])
def test_bad_crop_size(images, size):
    with pytest.raises(ValueError, match=rf"size must be in \[1, 8\], got {size}"):
        random_crop(images, seeded(), padding=0, mode="reflect", size=size)


def test_unknown_padding_mode(images, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its check would come first
    with pytest.raises(ValueError, match=r"mode must be constant or reflect, got 'zeros'"):
        random_crop(images, seeded(), padding=1, mode="zeros")


def test_no_padding_changes_nothing(images):
    assert torch.equal(random_crop(images, seeded(), padding=0, mode="constant"), images)


def test_flip_mirrors_about_half_of_the_images(images):
    flipped = random_flip(images, seeded())
    is_flipped = [torch.equal(new, old.flip(-1)) for new, old in zip(flipped, images, strict=True)]
    is_same = [torch.equal(new, old) for new, old in zip(flipped, images, strict=True)]
    assert [a != b for a, b in zip(is_flipped, is_same, strict=True)] == [True] * 300
    assert 120 < sum(is_flipped) < 180


def test_crop_flip_is_a_crop_then_a_flip_with_one_generator(images):
    generator = seeded(7)
    expected = random_flip(random_crop(images, generator, padding=2, mode="reflect"), generator)
    assert torch.equal(CropFlip(padding=2, mode="reflect")(images, 0, seeded(7)), expected)


def test_crop_flip_depends_on_its_generator_only(images):
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


# Alternating flip


def coin_by_loop(image: torch.Tensor) -> bool:
    data = bytes(image.flatten().tolist())
    data += bytes(-len(data) % 8)
    words = [int.from_bytes(data[start : start + 8], "little") for start in range(0, len(data), 8)]
    golden = 0x9E3779B97F4A7C15
    return sum((2 * index + 1) * golden * word for index, word in enumerate(words)) % 2**64 >= 2**63


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("height", [8, 7])  # with 7x11 pixels the last word is not full
def test_coins_equal_a_loop_in_pythons_integers(images, channels, height):
    images = images[:, :channels, :height]
    assert flip_coins(images).tolist() == [coin_by_loop(image) for image in images]


@pytest.mark.parametrize("epoch", [0, 1, 2, 7])
def test_alternating_flip_equals_a_loop(images, epoch):
    flipped = alternating_flip(images, epoch)
    for image, coin, new in zip(images, flip_coins(images).tolist(), flipped, strict=True):
        assert torch.equal(new, image.flip(-1) if (coin + epoch) % 2 == 1 else image)


def test_two_consecutive_epochs_show_each_image_in_both_orientations(images):
    for epoch in range(4):
        one, next_one = alternating_flip(images, epoch), alternating_flip(images, epoch + 1)
        assert torch.equal(next_one, one.flip(-1))
        assert not any(torch.equal(a, b) for a, b in zip(one, next_one, strict=True))


def noise(levels: int) -> torch.Tensor:
    """2,000 random images with this number of different pixel values."""
    return torch.randint(levels, (2000, 3, 32, 32), generator=seeded()).mul(255 // (levels - 1)).to(torch.uint8)


def nearly_equal() -> torch.Tensor:
    """2,000 copies of one image; in each copy another pixel is brighter by one."""
    copies = torch.full((2000, 3, 32, 32), 17, dtype=torch.uint8)
    copies.flatten(1)[torch.arange(2000), torch.arange(2000)] += 1
    return copies


def uniform() -> torch.Tensor:
    """2,000 images, each of a single colour."""
    return torch.randint(256, (2000, 3, 1, 1), dtype=torch.uint8, generator=seeded()).expand(-1, -1, 32, 32)


@pytest.mark.parametrize("some", [noise(256), noise(16), noise(2), nearly_equal(), uniform()])
def test_coins_are_fair_and_independent_of_the_next_image(some):
    coins = flip_coins(some)
    five_sigma = 5 * 0.5 * 2000**0.5
    assert abs(int(coins.sum()) - 1000) < five_sigma
    assert abs(int((coins == coins.roll(1)).sum()) - 1000) < five_sigma


def test_coins_do_not_depend_on_batch_order_or_layout(images):
    coins = flip_coins(images)
    order = torch.randperm(len(images), generator=seeded())
    assert torch.equal(flip_coins(images[order]), coins[order])
    assert torch.equal(torch.cat([flip_coins(batch) for batch in images.split(7)]), coins)
    assert torch.equal(flip_coins(images.contiguous(memory_format=torch.channels_last)), coins)


# Translation, cutout


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (1, 0), (0, -3), (-2, 3), (3, 3)])
def test_translate_moves_down_and_right(images, dy, dx):
    moved = translate(images, dy=dy, dx=dx)
    for image, new in zip(images[:20], moved, strict=False):
        assert torch.equal(new, shifted_by_padding(image, -dy, -dx))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_cutout_paints_one_square_inside_each_image(images, channels, size):
    images = images[:, :channels]
    fill = [0, 7, 255][:channels] if size == 3 else [0]
    painted = cutout(images, seeded(), size=size, fill=fill)
    value = torch.tensor((fill * 3)[:channels], dtype=torch.uint8)[:, None, None]
    places = Counter()
    for image, new in zip(images, painted, strict=True):
        matching = []
        for top in range(8 - size + 1):
            for left in range(11 - size + 1):
                expected = image.clone()
                expected[:, top : top + size, left : left + size] = value
                if torch.equal(new, expected):
                    matching.append((top, left))
        assert len(matching) == 1  # the images have no 0, so each square is visible
        places[matching[0]] += 1
    num_places = (8 - size + 1) * (11 - size + 1)
    mean = 300 / num_places
    assert len(places) > 0.9 * min(num_places, 300 * (1 - 1 / 2.718))
    assert max(places.values()) < mean + 6 * mean**0.5 + 1
    assert painted.dtype == torch.uint8


def test_cutout_does_not_change_its_input(images):
    before = images.clone()
    cutout(images, seeded(), size=4, fill=[0])
    assert torch.equal(images, before)


def test_cutout_of_size_zero_changes_no_image_and_draws_no_numbers(images):
    generator = seeded()
    assert torch.equal(cutout(images, generator, size=0, fill=[0]), images)
    assert torch.equal(generator.get_state(), seeded().get_state())


def test_bad_cutout(images):
    with pytest.raises(ValueError, match=r"size must be in \[0, 8\], got 9"):
        cutout(images, seeded(), size=9, fill=[0])
    with pytest.raises(ValueError, match=r"fill must have 1 or 3 numbers, got \[1, 2\]"):
        cutout(images, seeded(), size=3, fill=[1, 2])


# FlipTranslateCutout


def test_flip_translate_cutout_is_its_three_steps_with_one_generator(images):
    augment = FlipTranslateCutout(padding=2, cutout_size=3, mean=[0.5, 0.2, 1.0])
    for epoch in (0, 1):
        generator = seeded(7)
        moved = random_crop(alternating_flip(images, epoch), generator, padding=2, mode="reflect")
        expected = cutout(moved, generator, size=3, fill=[128, 51, 255])
        assert torch.equal(augment(images, epoch, seeded(7)), expected)


def test_early_epochs_see_crops(images):
    augment = FlipTranslateCutout(early_sizes=[5, 6], cutout_size=2)
    for epoch, size in enumerate([5, 6]):
        generator = seeded(7)
        crops = random_crop(alternating_flip(images, epoch), generator, padding=0, mode="reflect", size=size)
        assert torch.equal(augment(images, epoch, seeded(7)), cutout(crops, generator, size=2, fill=[128]))
    full = FlipTranslateCutout(cutout_size=2)
    assert torch.equal(augment(images, 2, seeded(7)), full(images, 2, seeded(7)))
    with pytest.raises(ValueError, match=r"early_sizes must be at most \d+ each, got \[5, 99\]"):
        FlipTranslateCutout(early_sizes=[5, 99])(images, 0, seeded())


def test_other_flips_do_not_depend_on_the_epoch(images):
    none = FlipTranslateCutout(flip="none", padding=0)
    assert torch.equal(none(images, 1, seeded()), images)
    generator = seeded(7)
    expected = random_crop(random_flip(images, generator), generator, padding=2, mode="reflect")
    for epoch in (0, 1):
        assert torch.equal(FlipTranslateCutout(flip="random")(images, epoch, seeded(7)), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"padding": -1}, "padding must be at least 0, got -1"),
        ({"cutout_size": -2}, "cutout_size must be at least 0, got -2"),
        ({"mean": [1.5]}, r"mean must be in \[0, 1\] per channel, got \[1\.5\]"),
        ({"mean": []}, "mean must be in"),
        (
            {"early_sizes": [24, 10], "cutout_size": 12},
            "cutout_size must be at most the smallest of early_sizes, 10, got 12",
        ),
        ({"early_sizes": [24, 0]}, r"early_sizes must be at least 1 each, got \[24, 0\]"),
    ],
)
def test_bad_flip_translate_cutout(arguments, message):
    with pytest.raises(ValueError, match=message):
        FlipTranslateCutout(**arguments)


@pytest.mark.gpu
def test_augmentation_does_not_wait_for_a_gpu_and_draws_the_coins_of_the_cpu(images):
    on_gpu, generator = images.cuda(), torch.Generator("cuda").manual_seed(0)
    augment = FlipTranslateCutout(cutout_size=3, mean=[0.1, 0.2, 0.3], early_sizes=[6, 6])
    augment(on_gpu, 0, generator)
    with no_synchronizing():
        augment(on_gpu, 1, generator)
        flipped = alternating_flip(on_gpu, 1)
        Photo()(on_gpu, 0, generator)
    assert torch.equal(flipped.cpu(), alternating_flip(images, 1))


def photo_by_image(images, generator, *, scale, ratio, flip, brightness, contrast, saturation):
    """One image after the other by torchvision's functions, with the numbers that ``Photo`` draws."""
    n, _, height, width = images.shape
    drawn = torch.rand(5, n, generator=generator)
    colors = torch.rand(3, n, 1, 1, 1, generator=generator).flatten(1)
    results, boxes = [], []
    for i, image in enumerate(images):
        area, tilt, left, top, mirror = drawn[:, i].tolist()
        area = scale[0] + (scale[1] - scale[0]) * area
        least, most = max(math.log(ratio[0]), math.log(area)), min(math.log(ratio[1]), -math.log(area))
        r = math.exp(least + (most - least) * tilt)
        w, h = round(width * (area * r) ** 0.5), round(height * (area / r) ** 0.5)
        x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
        boxes.append((y, x, h, w))
        changed = TF.resized_crop(image / 255, y, x, h, w, [height, width])
        changed = TF.hflip(changed) if flip and mirror < 0.5 else changed
        for adjust, strength, draw in zip(
            (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation),
            (brightness, contrast, saturation),
            colors[:, i].tolist(),
            strict=True,
        ):
            changed = adjust(changed, 1 + strength * (2 * draw - 1))
        results.append((changed * 255).round().to(torch.uint8))
    return torch.stack(results), boxes


PHOTO = {"scale": (0.3, 1.0), "ratio": (0.5, 2.0), "flip": True, "brightness": 0.4, "contrast": 0.6, "saturation": 1.0}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("off", [{}, {"flip": False}, {"scale": (1.0, 1.0)}, {"brightness": 0.0, "contrast": 0.0}])
def test_photo_equals_torchvisions_functions_image_by_image(channels, off):
    smooth = torch.rand(60, channels, 7, 9, generator=seeded(1))
    images = (255 * torch.nn.functional.interpolate(smooth, (30, 40), mode="bilinear")).to(torch.uint8)
    before = images.clone()
    arguments = PHOTO | off
    found = Photo(**arguments)(images, 0, seeded(2))
    expected, boxes = photo_by_image(images, seeded(2), **arguments)
    assert found.dtype == torch.uint8
    assert torch.equal(images, before)
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.02  # whose fraction is about a half
    assert all(y >= 0 and y + h <= 30 and x >= 0 and x + w <= 40 for y, x, h, w in boxes)
    assert len(set(boxes)) == (1 if "scale" in off else 60)


def test_photo_without_changes_is_the_image(images):
    off = {"scale": (1.0, 1.0), "flip": False, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    assert torch.equal(Photo(**off)(images, 0, seeded()), images)


def test_large_images_are_changed_a_few_at_a_time():
    images = torch.randint(256, (3, 1, NUM_CACHED // 1024, 512), dtype=torch.uint8, generator=seeded())
    generator = seeded()
    few = [Photo()(some, 0, generator) for some in (images[:2], images[2:])]
    assert torch.equal(Photo()(images, 0, seeded()), torch.cat(few))


def test_areas_are_even_and_ratios_symmetric():
    _, boxes = photo_by_image(
        torch.zeros(1000, 1, 100, 100, dtype=torch.uint8),
        seeded(),
        **PHOTO | {"scale": (0.5, 1.0), "ratio": (0.75, 4 / 3)},
    )
    areas = torch.tensor([h * w / 100**2 for _, _, h, w in boxes])
    assert areas.mean().item() == pytest.approx(0.75, abs=0.02)
    logs = torch.tensor([math.log(w / h) for _, _, h, w in boxes])
    assert logs.mean().abs() < 0.01
    assert logs.abs().max() <= math.log(4 / 3) + 0.03


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": (0.0, 1.0)}, "scale must be two numbers in (0, 1], the smaller one first, got [0.0, 1.0]"),
        ({"scale": (0.9, 0.5)}, "scale must be two numbers in (0, 1], the smaller one first, got [0.9, 0.5]"),
        ({"scale": [0.5]}, "scale must be two numbers in (0, 1], the smaller one first, got [0.5]"),
        ({"ratio": (1.1, 1.3)}, "ratio must be a number in (0, 1] and one of at least 1, got [1.1, 1.3]"),
        ({"contrast": 1.1}, "contrast must be in [0, 1], got 1.1"),
    ],
)
def test_bad_photo(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Photo(**arguments)
