"""Pixels of image files."""

import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import RNG, noise, read, write
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from cifar_lightning.data import decode, formats
from cifar_lightning.data.folder import ImageFolder

needs_avif = pytest.mark.skipif(not formats.has_avif(), reason="this Pillow has no AVIF")


def pixels(path: Path, image_size: int = 32) -> np.ndarray:
    decoded, _, problems = decode.decode_files([str(path)], image_size)
    assert not problems
    return np.frombuffer(decoded, np.uint8).reshape(image_size, image_size, 3)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "RGB"])
def test_modes_are_converted_as_torchvision_does(mode, tmp_path):
    path = write(tmp_path / "x.png", Image.fromarray(noise()).convert(mode))
    np.testing.assert_array_equal(pixels(path), read(path))


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


@pytest.mark.parametrize("filter_kind", range(5))
def test_a_plain_png_of_any_filter_is_read_without_pillows_parser(filter_kind, tmp_path, monkeypatch):
    rows = np.concatenate([np.full((32, 1), filter_kind, np.uint8), noise().reshape(32, 96)], axis=1).tobytes()
    whole = write(tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(whole[:33] + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    expected = read(tmp_path / "x.png")
    monkeypatch.setattr(Image, "open", None)
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), expected)


def test_images_decoded_in_one_call_do_not_affect_each_other(tmp_path):
    to_row_above = np.concatenate([np.full((32, 1), 2, np.uint8), noise().reshape(32, 96)], axis=1)
    paths = [write(tmp_path / f"{number}.png") for number in range(5)]
    start = paths[0].read_bytes()[:33]
    paths[2].write_bytes(start + chunk(b"IDAT", zlib.compress(to_row_above.tobytes())) + chunk(b"IEND", b""))
    write(paths[1], Image.fromarray(noise()).convert("P"))  # not a plain PNG
    paths[3].write_bytes(b"no image")
    decoded, stamps, problems = decode.decode_files([str(path) for path in paths], 32)
    images = np.frombuffer(decoded, np.uint8).reshape(5, 32, 32, 3)
    for number in (0, 1, 2, 4):
        np.testing.assert_array_equal(images[number], read(paths[number]))
    assert not images[3].any()
    assert list(problems) == [3]
    assert stamps == [decode.file_stamp(str(path)) for path in paths]
    assert len(set(stamps)) == 5


@pytest.mark.parametrize("filter_kind", [5, 255])
def test_a_png_with_an_unknown_filter_is_damaged(filter_kind, tmp_path):
    rows = np.concatenate([np.zeros((32, 1), np.uint8), noise().reshape(32, 96)], axis=1)
    rows[7, 0] = filter_kind
    whole, bad = write(tmp_path / "whole.png"), tmp_path / "bad.png"
    bad.write_bytes(whole.read_bytes()[:33] + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b""))
    decoded, _, problems = decode.decode_files([str(bad), str(whole)], 32)
    assert list(problems) == [0]
    assert decoded[3072:] == read(whole).tobytes()


@pytest.mark.parametrize("arguments", [{"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}, {"dpi": (72, 72)}])
def test_a_png_with_further_chunks_is_read_whole(arguments, tmp_path):
    path = write(tmp_path / "x.png", **arguments)
    np.testing.assert_array_equal(pixels(path), read(path))


def read_by_pillow(path: Path) -> bytes | None:
    """Pixels, or None where Pillow finds the file damaged."""
    try:
        return read(path).tobytes()
    except (OSError, SyntaxError, ValueError):
        return None


@pytest.mark.parametrize("place", [10, 20, 31, 35, 38, 500, -14, -1])
def test_a_png_with_a_flipped_bit_is_treated_as_pillow_treats_it(place, tmp_path):
    path = write(tmp_path / "x.png")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    decoded, _, problems = decode.decode_files([str(path)], 32)
    assert (None if problems else decoded) == read_by_pillow(path)


def test_a_transparent_palette_raises_no_warning(tmp_path):
    image = Image.fromarray(noise()).convert("P")
    path = write(tmp_path / "train/a/x.png", image, transparency=bytes(range(256)))
    write(tmp_path / "test/a/x.png")
    data = ImageFolder(tmp_path)
    np.testing.assert_array_equal(data.data[0], np.asarray(Image.open(path).convert("RGBA"))[..., :3])


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_grey_of_16_bits_keeps_its_range(kind, tmp_path):
    grey = RNG.integers(0, 65536, (32, 32), dtype=np.uint16)
    path = write(tmp_path / f"x.{kind}", grey)
    np.testing.assert_array_equal(pixels(path), np.repeat(grey[..., None] >> 8, 3, axis=2))


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
def test_exif_turns_the_image(kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer turns the image clockwise by 90 degrees
    halves = np.zeros((32, 32, 3), np.uint8)
    halves[:16] = 255
    path = write(tmp_path / f"x.{kind}", halves, exif=exif)
    turned = pixels(path).astype(int)
    assert turned[:, 18:].min() > 200
    assert turned[:, :14].max() < 50


def turned_by_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return np.asarray(ImageOps.fit(upright, (32, 32), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff", pytest.param("avif", marks=needs_avif)])
@pytest.mark.parametrize("orientation", range(10))  # 1 to 8 have a meaning
def test_an_image_of_any_orientation_is_turned_as_pillow_turns_it(orientation, kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / f"x.{kind}", noise(40, 56), exif=exif)
    np.testing.assert_array_equal(pixels(path), turned_by_pillow(path))


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of entries ``(tag, type, count, four bytes of value)``, with an orientation that turns by 90."""
    entries = tuple(sorted([(0x0112, 3, 1, b"\0\6\0\0"), *entries]))
    packed = b"".join(struct.pack(">HHL", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + packed + bytes(20)


ODD_TAGS = (
    0x0100,
    0x010E,
    0x010F,
    0x011A,
    0x0128,
    0x0132,
    0x0213,
    0x02BC,
    0x8298,
    0x8769,
    0x8825,
    0x9286,
    0x9C9B,
    0xFFFF,
)


@pytest.mark.filterwarnings("ignore")  # Pillow's, in what is compared with
@pytest.mark.parametrize("tag", ODD_TAGS, ids=hex)
@pytest.mark.parametrize("count", [0, 1, 9])
def test_an_image_with_an_odd_entry_in_its_exif_is_turned(count, tag, tmp_path):
    image = noise(40, 56)
    upright = turned_by_pillow(write(tmp_path / "plain.jpg", image, exif=exif_block()))
    for kind in range(20):  # 1 to 13 are known
        for value in (bytes(4), b"\0\0\0\1", b"\xff\xff\xff\xff"):
            path = write(tmp_path / "odd.jpg", image, exif=exif_block((tag, kind, count, value)))
            try:
                expected = turned_by_pillow(path)  # not turned if Pillow reads nothing behind the odd entry
            except Exception:
                expected = upright
            np.testing.assert_array_equal(pixels(path), expected, err_msg=f"type {kind}, value {value!r}")


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    "block",
    [
        *(b"", b"M", b"MM", b"nonsense", b"MM\0*", b"MM\0*\0\0\0\x08", b"MM\0*\0\0\0\x08\xff\xff"),
        *(b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_image_whose_exif_is_damaged_is_not_turned(block, kind, tmp_path):
    path = write(tmp_path / f"x.{kind}", noise(), exif=b"Exif\0\0" + block)
    np.testing.assert_array_equal(pixels(path), read(path))


@pytest.mark.parametrize(("height", "width"), [(64, 128), (128, 64), (8, 16), (40, 60), (41, 41)])
def test_an_image_of_another_size_is_cropped_to_its_centre_and_resized(height, width, tmp_path):
    path = write(tmp_path / "x.png", noise(height, width))
    scale = 32 / min(height, width)
    size = round(width * scale), round(height * scale)
    left, top = (size[0] - 32) // 2, (size[1] - 32) // 2
    resized = Image.open(path).resize(size, Image.Resampling.BILINEAR).crop((left, top, left + 32, top + 32))
    np.testing.assert_allclose(pixels(path).astype(int), np.asarray(resized).astype(int), atol=1)


def test_making_an_image_smaller_averages_its_pixels(tmp_path):
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.ptp(pixels(write(tmp_path / "x.png", board)).astype(int) - 127) < 5


def test_a_jpeg_whose_metadata_pillow_does_not_read_is_read_without(tmp_path):
    image = noise(40, 56)
    upright = turned_by_pillow(write(tmp_path / "plain.jpg", image, exif=exif_block()))
    resolution = ((0x011A, 2, 1, b"\0\0\0\0"), (0x0128, 3, 1, b"\0\2\0\0"))  # a text, empty
    content = write(tmp_path / "odd.jpg", image, exif=exif_block(*resolution), comment="x").read_bytes()
    (tmp_path / "odd.jpg").write_bytes(content[:2] + content[20:])  # without the JFIF header, where resolution also is
    with pytest.raises(UnidentifiedImageError, match="cannot identify image file"):
        Image.open(tmp_path / "odd.jpg")
    np.testing.assert_array_equal(pixels(tmp_path / "odd.jpg"), upright)


def test_a_tiff_whose_metadata_pillow_does_not_read_is_read_without(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags.tagtype[0x02BC] = 3
    tags[0x02BC] = 7  # a number where XMP has a text
    image = Image.fromarray(noise(40, 56))
    path = write(tmp_path / "x.tif", image, tiffinfo=tags)  # which Pillow 13 does not read
    np.testing.assert_array_equal(pixels(path), ImageOps.fit(image, (32, 32), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt", b"pHYs", b"acTL"])
@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_a_png_whose_metadata_pillow_does_not_read_is_read_without(mode, kind, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(noise(40, 56)).convert(mode)
    path = write(tmp_path / "x.png", image, exif=exif, **({"transparency": 3} if mode == "P" else {}))
    upright = pixels(path)
    large = zlib.compress(bytes(2_000_000))
    content = {b"iTXt": b"x\0\1\0\0\0" + large, b"pHYs": b"x", b"acTL": b"x"}.get(kind, b"x\0\0" + large)
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + chunk(kind, content) + whole[33:])
    with pytest.raises(ValueError, match=r"large|runcated"), Image.open(path) as opened:
        opened.load()
    np.testing.assert_array_equal(pixels(path), upright)


# Size


def test_a_large_image_is_read_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 64 * 64)
    paths = [write(tmp_path / "most.png", noise(64, 64)), write(tmp_path / "more.png", noise(64, 65))]
    _, _, problems = decode.decode_files(list(map(str, paths)), 32)
    assert problems == {1: "more than 0 million pixels: save it smaller"}


def png_of(height: int, width: int, content: bytes) -> bytes:
    header = struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content, level=1)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_a_decompression_bomb_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(png_of(20_000, 20_000, b""))
    warned_above = Image.MAX_IMAGE_PIXELS
    _, _, problems = decode.decode_files([str(tmp_path / "x.png")], 32)
    assert problems == {0: "more than 250 million pixels: save it smaller"}
    assert warned_above == Image.MAX_IMAGE_PIXELS


def test_a_png_that_holds_far_more_than_its_pixels_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png_of(1024, 1024, bytes(100_000_000)))
    assert path.stat().st_size < 4 * 1024 * 1024
    tracemalloc.start()
    decode.decode_files([str(path)], 1024)
    assert tracemalloc.get_traced_memory()[1] < 50_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_an_image_of_many_pixels_looks_as_it_does_whole(orientation, kind, tmp_path, monkeypatch):
    smooth = Image.fromarray(noise(5, 7)).resize((1280, 896), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / f"x.{kind}", smooth, exif=exif)
    whole = pixels(path)
    monkeypatch.setattr(decode, "MAX_PIXELS_WHOLE", 1_000_000)
    difference = np.abs(pixels(path).astype(int) - whole)
    assert difference.max() <= 3
    assert difference.mean() < 1


MEMORY = """
import runpy, sys
problems = runpy.run_path(sys.argv[1])["decode_files"]([sys.argv[2]], 32)[2]
print(problems, *(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the most memory that a process had in /proc")
def test_a_photo_of_200_megapixels_is_read_in_little_memory(tmp_path):
    path = write(tmp_path / "x.jpg", Image.new("RGB", (16_320, 12_240), (10, 200, 30)))
    command = [sys.executable, "-c", MEMORY, decode.__file__, path]
    problems, _, kib, _ = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert problems == "{}"
    assert int(kib) < 100_000
    np.testing.assert_allclose(pixels(path)[0, 0], (10, 200, 30), atol=3)


@pytest.mark.parametrize(
    ("mode", "save"),
    [("RGBA", {}), ("LA", {}), ("P", {"transparency": 0}), ("RGB", {"transparency": (200, 40, 40)})],
)
def test_a_background_stands_behind_transparent_pixels(tmp_path, mode, save):
    picture = Image.new("RGBA", (40, 40), (200, 40, 40, 255))
    picture.paste((10, 20, 30, 255), (0, 0, 20, 40))
    if mode in ("RGBA", "LA"):  # the right half is transparent, and half of that a little
        picture.paste((200, 40, 40, 0), (20, 0, 40, 20))
        picture.paste((200, 40, 40, 51), (20, 20, 40, 40))
        image = picture.convert(mode)
    elif mode == "P":  # colour 0 is transparent
        image = Image.new("P", (40, 40), 0)
        image.putpalette([200, 40, 40, 10, 20, 30])
        image.paste(1, (0, 0, 20, 40))
    else:  # that very colour is transparent
        image = picture.convert("RGB")
    image.save(tmp_path / "x.png", **save)

    def over(background):
        decoded, _, problems = decode.decode_files([str(tmp_path / "x.png")], 40, background)
        assert problems == {}
        return np.frombuffer(decoded, np.uint8).reshape(40, 40, 3)

    as_it_is, white = over(None), over((255, 255, 255))
    assert np.array_equal(as_it_is[:, :20], white[:, :20])
    assert (white[:20, 20:] == 255).all()
    assert not (as_it_is[:20, 20:] == 255).all()
    if mode == "RGBA":
        assert white[30, 30].tolist() == [244, 212, 212]  # a fifth of the way
    assert np.array_equal(from_memory(tmp_path / "x.png", (0, 0, 255)), over((0, 0, 255)))


def from_memory(path, background):
    with decode.limited_to(decode.MAX_PIXELS):
        content = decode.decode_content(path.read_bytes(), 40, background)
    return np.frombuffer(content, np.uint8).reshape(40, 40, 3)


def test_opaque_images_do_not_change_with_a_background(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "x.png")
    Image.fromarray(rng.integers(0, 256, (40, 40), np.uint8)).save(tmp_path / "y.png")
    paths = [str(tmp_path / name) for name in ("x.png", "y.png")]
    assert decode.decode_files(paths, 32)[0] == decode.decode_files(paths, 32, (255, 0, 0))[0]


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    picture = Image.new("RGB", (64, 48), (200, 40, 40))
    picture.save(tmp_path / "x.heic", "HEIF", quality=100)
    picture.save(tmp_path / "x.jpg", "HEIF", quality=100)  # as phones name it when they send it
    decoded, _, problems = decode.decode_files([str(tmp_path / "x.heic"), str(tmp_path / "x.jpg")], 32)
    assert problems == {}
    assert np.abs(np.frombuffer(decoded, np.uint8).reshape(-1, 3).astype(int) - [200, 40, 40]).max() <= 3


def test_heic_is_named_where_pillow_heif_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(formats, "HAS_HEIC", False)
    (tmp_path / "x.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    _, _, problems = decode.decode_files([str(tmp_path / "x.jpg")], 32)
    assert problems == {0: decode.UNKNOWN_FORMAT}
    reason = formats.why_not_by_content(str(tmp_path / "x.jpg"))
    assert reason.startswith(
        "HEIC, for which pillow-heif is not installed (pip install pillow-heif), by its content, wh"
    )


@needs_avif
def test_avif_that_begins_with_a_general_brand(tmp_path):
    write(tmp_path / "x.avif", noise(), quality=100)
    content = bytearray((tmp_path / "x.avif").read_bytes())
    assert content[8:12] == b"avif"
    content[8:12] = b"mif1"  # it still names avif among the compatible ones
    (tmp_path / "y.avif").write_bytes(content)
    np.testing.assert_array_equal(pixels(tmp_path / "y.avif"), pixels(tmp_path / "x.avif"))
    (tmp_path / "z.avif").write_bytes(content[:100])
    assert formats.why_not_by_content(str(tmp_path / "z.avif")).startswith("AVIF of a kind that Pillow does not decode")
