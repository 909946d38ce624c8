import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_lightning.data import decode as decoding
from cifar_lightning.data import decode_pool as decoders
from cifar_lightning.data import folder, pixelcache
from cifar_lightning.data.arrays import fetch, to_arrays
from cifar_lightning.data.decode import decode
from cifar_lightning.data.folder import ImageFolder

RNG = np.random.default_rng(0)


def noise(height: int = 32, width: int = 32) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, image: np.ndarray | Image.Image | None = None, **arguments) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = noise() if image is None else image
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **arguments)
    return path


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def cache_files(root: Path) -> list[Path]:
    return sorted((root / ".cifar-lightning").iterdir())


@pytest.fixture
def root(tmp_path) -> Path:
    """Two images of each of two classes to train on, one to test on."""
    for name in ("train/dog/1.png", "train/dog/0.png", "train/cat/1.png", "train/cat/0.png"):
        write(tmp_path / name)
    for name in ("test/dog/0.png", "test/cat/0.png"):
        write(tmp_path / name)
    return tmp_path


@pytest.fixture
def no_decoding(monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(folder, "decode_all", fail)


# What is read


def test_images_come_by_class_and_path_pixel_for_pixel(root):
    data = ImageFolder(root)
    assert data.classes == ["cat", "dog"]
    assert data.targets == [0, 0, 1, 1]
    assert data.num_val == 0
    assert data.data.dtype == np.uint8
    files = [root / "train" / name for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")]
    np.testing.assert_array_equal(data.data, np.stack([read(file) for file in files]))


def test_test_images_are_those_of_test(root):
    data = ImageFolder(str(root), train=False, download=True)
    assert (data.targets, data.num_val) == ([0, 1], 0)
    np.testing.assert_array_equal(data.data[1], read(root / "test/dog/0.png"))


def test_val_follows_train(root):
    write(root / "val/cat/0.png")  # of dog there are none, which val may do
    data = ImageFolder(root)
    assert (data.targets, data.num_val) == ([0, 0, 1, 1, 0], 1)
    np.testing.assert_array_equal(data.data[-1], read(root / "val/cat/0.png"))
    assert ImageFolder(root, train=False).num_val == 0


def test_arrays_of_it_have_channels_first(root):
    arrays = to_arrays(fetch(ImageFolder, root=root, train=True))
    assert arrays.images.shape == (4, 3, 32, 32)
    assert arrays.classes == ("cat", "dog")


def test_nested_folders_belong_to_their_class(root):
    nested = write(root / "train/cat/0/deep/x.JPG")
    data = ImageFolder(root)
    assert data.targets == [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(data.data[1], read(nested))  # "0.png" is before "0/deep/x.JPG"


def test_hidden_files_are_passed_over(root):
    for name in (
        "train/.DS_Store",
        "train/cat/.DS_Store",
        "train/cat/Thumbs.db",
        "train/.cache/x",
        "train/cat/._0.png",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"not an image")
    assert ImageFolder(root).targets == [0, 0, 1, 1]


def test_a_link_to_a_file_is_read(root):
    (root / "train/cat/2.png").symlink_to(root / "test/cat/0.png")
    np.testing.assert_array_equal(ImageFolder(root).data[2], read(root / "test/cat/0.png"))


# Pixels


def pixels(path: Path, image_size: int = 32) -> np.ndarray:
    decoded, _, problems = decode([str(path)], image_size)
    assert not problems
    return np.frombuffer(decoded, np.uint8).reshape(image_size, image_size, 3)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "RGB"])
def test_modes_are_converted_as_torchvision_does(mode, tmp_path):
    path = write(tmp_path / "x.png", Image.fromarray(noise()).convert(mode))
    np.testing.assert_array_equal(pixels(path), read(path))


def chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


@pytest.mark.parametrize("filter_kind", range(5))
def test_a_plain_png_is_read_the_short_way(filter_kind, tmp_path, monkeypatch):
    rows = np.concatenate([np.full((32, 1), filter_kind, np.uint8), noise().reshape(32, 96)], axis=1).tobytes()
    whole = write(tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(whole[:33] + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    expected = read(tmp_path / "x.png")
    monkeypatch.setattr(decoding, "_any_image", None)
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), expected)


def test_plain_pngs_are_read_in_one_go_and_none_tells_on_the_next(tmp_path):
    to_row_above = np.concatenate([np.full((32, 1), 2, np.uint8), noise().reshape(32, 96)], axis=1)
    paths = [write(tmp_path / f"{number}.png") for number in range(5)]
    start = paths[0].read_bytes()[:33]
    paths[2].write_bytes(start + chunk(b"IDAT", zlib.compress(to_row_above.tobytes())) + chunk(b"IEND", b""))
    write(paths[1], Image.fromarray(noise()).convert("P"))  # by Pillow, between them
    paths[3].write_bytes(b"no image")
    decoded, stamps, problems = decode([str(path) for path in paths], 32)
    images = np.frombuffer(decoded, np.uint8).reshape(5, 32, 32, 3)
    for number in (0, 1, 2, 4):
        np.testing.assert_array_equal(images[number], read(paths[number]))
    assert not images[3].any()
    assert list(problems) == [3]
    assert stamps == [decoding.file_stamp(str(path)) for path in paths]
    assert len(set(stamps)) == 5


@pytest.mark.parametrize("filter_kind", [5, 255])
def test_a_png_of_an_unknown_filter_is_left_to_pillow(filter_kind, tmp_path):
    rows = np.concatenate([np.zeros((32, 1), np.uint8), noise().reshape(32, 96)], axis=1)
    rows[7, 0] = filter_kind
    whole, bad = write(tmp_path / "whole.png"), tmp_path / "bad.png"
    bad.write_bytes(whole.read_bytes()[:33] + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b""))
    decoded, _, problems = decode([str(bad), str(whole)], 32)
    assert list(problems) == [0]
    assert decoded[3072:] == read(whole).tobytes()


@pytest.mark.parametrize("arguments", [{"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}, {"dpi": (72, 72)}])
def test_a_png_with_more_in_it_is_read_by_pillow(arguments, tmp_path, monkeypatch):
    path = write(tmp_path / "x.png", **arguments)
    np.testing.assert_array_equal(pixels(path), read(path))
    monkeypatch.setattr(decoding, "_any_image", lambda path, image_size: b"by Pillow")
    assert decode([str(path)], 32)[0] == b"by Pillow"


@pytest.mark.parametrize("place", [10, 20, 31, 35, 38, 500, -14, -1])
def test_a_png_with_a_flipped_bit_is_never_read_the_short_way(place, tmp_path, monkeypatch):
    path = write(tmp_path / "x.png")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(decoding, "_any_image", lambda path, image_size: b"by Pillow")
    assert decode([str(path)], 32)[0] == b"by Pillow"


def test_a_transparent_palette_warns_no_one(tmp_path):
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
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    halves = np.zeros((32, 32, 3), np.uint8)
    halves[:16] = 255
    path = write(tmp_path / f"x.{kind}", halves, exif=exif)
    turned = pixels(path).astype(int)
    assert turned[:, 18:].min() > 200
    assert turned[:, :14].max() < 50


@pytest.mark.parametrize(("height", "width"), [(64, 128), (128, 64), (8, 16), (40, 60), (41, 41)])
def test_another_shape_is_resized_by_its_shorter_side_and_cropped_to_its_centre(height, width, tmp_path):
    path = write(tmp_path / "x.png", noise(height, width))
    scale = 32 / min(height, width)
    size = round(width * scale), round(height * scale)
    left, top = (size[0] - 32) // 2, (size[1] - 32) // 2
    resized = Image.open(path).resize(size, Image.Resampling.BILINEAR).crop((left, top, left + 32, top + 32))
    np.testing.assert_allclose(pixels(path).astype(int), np.asarray(resized).astype(int), atol=1)


def test_making_smaller_averages(tmp_path):
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.ptp(pixels(write(tmp_path / "x.png", board)).astype(int) - 127) < 5


def test_image_size(root):
    assert ImageFolder(root, image_size=48).data.shape == (4, 48, 48, 3)


# What cannot be used


@pytest.mark.parametrize("image_size", [0, -1, 1025])
def test_bad_image_size(image_size, root):
    with pytest.raises(ValueError, match=rf"image_size must be in \[1, 1024\], got {image_size}"):
        ImageFolder(root, image_size=image_size)


@pytest.mark.parametrize("missing", ["", "train", "test"])
def test_root_must_have_both_splits(missing, root):
    shutil.rmtree(root / missing)
    with pytest.raises(ValueError, match=rf"^root must be .*train/<class>/.*{root / missing} is not a folder$"):
        ImageFolder(root)


def test_no_root_and_no_class(tmp_path):
    with pytest.raises(ValueError, match=r"^root must be .*none is given"):
        ImageFolder(None)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match=r"^root must be .*train/ has no folder in it"):
        ImageFolder(tmp_path)


def test_all_that_is_wrong_is_said_at_once(root):
    whole = (root / "train/cat/0.png").read_bytes()
    (root / "train/cat/cut.png").write_bytes(whole[:1000])
    (root / "train/cat/none.png").write_bytes(b"")
    (root / "train/cat/notes.txt").write_text("x")
    (root / "train/cat/text.jpg").write_text("some text\n")
    (root / "train/cat/nowhere.png").symlink_to(root / "absent.png")
    (root / "train/loose.png").write_bytes(whole)
    (root / "train/empty").mkdir()
    write(root / "val/cow/0.png")
    (root / "test/dog/bad.png").write_text("no image")  # of another split than the one that is read
    with pytest.raises(ValueError, match=f"10 paths in {root} cannot be used, remove or mend them: ") as caught:
        ImageFolder(root)
    message = str(caught.value)
    assert "\n" not in message
    told = dict(part.split(": ", 1) for part in message.partition("mend them: ")[2].split("; "))
    assert list(told) == sorted(told)
    assert "truncated" in told.pop("train/cat/cut.png")
    assert told == {
        "train/cat/none.png": "empty",
        "train/cat/notes.txt": "not an image by its name",
        "train/cat/nowhere.png": "No such file or directory",
        "train/cat/text.jpg": "not an image, or one of another kind",
        "test/dog/bad.png": "not an image, or one of another kind",
        "test/empty": "a class without images",
        "train/empty": "a class without images",
        "train/loose.png": "not in the folder of a class",
        "val/cow": "no class of train/",
    }


def test_links_that_lead_nowhere_new_are_said(root):
    (root / "train/cat/loop").symlink_to("loop")
    (root / "train/cat/around").symlink_to("..", target_is_directory=True)
    reasons = "train/cat/around: a link to a folder around it; train/cat/loop: Too many levels of symbolic links"
    with pytest.raises(ValueError, match=f"^2 paths in .*: {reasons}$"):
        ImageFolder(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_not_waited_for(root):
    os.mkfifo(root / "train/cat/pipe.png")
    with pytest.raises(ValueError, match=r"^1 path in .*: train/cat/pipe.png: not a file$"):
        ImageFolder(root)


def test_a_long_list_is_cut(root):
    for number in range(13):
        (root / f"train/cat/bad{number:02}.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"^13 paths .*bad09.png: [^;]*; and 3 more$"):
        ImageFolder(root)


def test_test_must_have_the_classes_of_train(root):
    (root / "test/dog").rename(root / "test/wolf")
    with pytest.raises(ValueError, match=r"2 paths .*test/dog: a class without images; test/wolf: no class of train/"):
        ImageFolder(root, train=False)


@pytest.mark.parametrize("num_pixels", [2000, 3000], ids=["bomb's error", "bomb's warning"])
def test_a_bomb_is_a_damaged_file(num_pixels, root, monkeypatch):
    write(root / "train/cat/x.png", noise(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", num_pixels)  # Pillow warns above it, and refuses above twice that
    with pytest.raises(ValueError, match=r"1 path .*cat/x.png: Image size \(4096 pixels\) exceeds limit"):
        ImageFolder(root)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_of_unknown_range_is_refused(dtype, root):
    write(root / "train/cat/x.tif", np.ones((32, 32), dtype))
    with pytest.raises(ValueError, match=r"train/cat/x.tif: its 32-bit pixels have no known range"):
        ImageFolder(root)


def test_a_file_of_another_kind_starts_no_program(root, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)  # Pillow reads PostScript with Ghostscript
    (root / "train/cat/x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(ValueError, match=r"train/cat/x.png: not an image"):
        ImageFolder(root)


# The cache


@pytest.mark.parametrize("train", [True, False])
def test_the_second_time_nothing_is_decoded(train, root, request):
    write(root / "val/dog/0.png")
    first = ImageFolder(root, train=train)
    request.getfixturevalue("no_decoding")
    second = ImageFolder(root, train=train)
    np.testing.assert_array_equal(second.data, first.data)
    assert second.data.flags.writeable
    assert (second.targets, second.classes, second.num_val) == (first.targets, first.classes, first.num_val)


def test_files_that_change_places_are_noticed(root):
    one, other = (root / f"train/{name}/same.bmp" for name in ("cat", "dog"))
    for path, value in ((one, 10), (other, 200)):
        Image.new("RGB", (32, 32), (value,) * 3).save(path)
        os.utime(path, ns=(0, 0))
    before = ImageFolder(root)
    one.rename(root / "aside")
    other.rename(one)
    (root / "aside").rename(other)
    after = ImageFolder(root)
    assert not np.array_equal(before.data, after.data)


def test_cached_problems_are_still_told(root):
    ImageFolder(root)
    kept = cache_files(root)
    (root / "train/cat/notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"1 path in .*notes.txt"):
        ImageFolder(root)
    assert cache_files(root) == kept


def change_content(root: Path) -> None:
    path = root / "train/cat/0.png"
    before = path.stat().st_mtime_ns
    write(path, np.zeros((32, 32, 3), np.uint8))
    os.utime(path, ns=(before, before))  # another size gives it away


def change_time(root: Path) -> None:
    os.utime(root / "train/cat/0.png", ns=(1, 1))


def add(root: Path) -> None:
    write(root / "train/cat/2.png")


def remove(root: Path) -> None:
    (root / "train/cat/1.png").unlink()


def rename(root: Path) -> None:
    (root / "train/cat/1.png").rename(root / "train/cat/9.png")


def move_to_another_class(root: Path) -> None:
    (root / "train/cat/1.png").rename(root / "train/dog/9.png")


@pytest.mark.parametrize("change", [change_content, change_time, add, remove, rename, move_to_another_class])
def test_a_change_of_the_files_is_noticed(change, root):
    ImageFolder(root)
    ImageFolder(root, train=False)
    ImageFolder(root, image_size=16)
    before = cache_files(root)
    change(root)
    data = ImageFolder(root)
    files = sorted((root / "train").glob("*/*.png"))
    np.testing.assert_array_equal(data.data, np.stack([read(file) for file in files]))
    after = cache_files(root)
    assert len(after) == len(before) == 3  # the old one is gone, those of the other split and size are not
    assert len(set(after) & set(before)) == 2


@pytest.mark.parametrize("damage", ["cut", "bit", "longer", "empty", "checksum"])
def test_a_damaged_cache_is_made_anew(damage, root, caplog):
    expected = ImageFolder(root).data
    (path,) = cache_files(root)
    content = bytearray(path.read_bytes())
    if damage in ("bit", "checksum"):
        content[100 if damage == "bit" else -1] ^= 1
    path.write_bytes({"cut": content[:-1], "longer": content + b"x", "empty": b""}.get(damage, content))
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(ImageFolder(root).data, expected)
    assert "read anew" in caplog.text
    caplog.clear()
    ImageFolder(root)
    assert not caplog.records


def test_without_a_place_for_the_cache_all_else_works(root, caplog):
    (root / ".cifar-lightning").touch()
    with caplog.at_level(logging.INFO):
        assert len(ImageFolder(root).data) == 4
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "no cache" in caplog.text


def test_a_disk_that_fills_while_images_come_in(many, monkeypatch, caplog):
    class Full(io.FileIO):
        def write(self, content: bytes) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(pixelcache, "open", Full, raising=False)
    with caplog.at_level(logging.INFO):
        data = ImageFolder(many).data
    assert caplog.text.count("No space left") == 1  # though two threads went on to write
    assert cache_files(many) == []
    monkeypatch.undo()
    np.testing.assert_array_equal(data, ImageFolder(many).data)


def test_a_full_disk_leaves_nothing_behind(root, monkeypatch, caplog):
    def full(pixels: np.ndarray) -> bytes:  # which are in the file by then
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pixelcache, "_checksum", full)
    with caplog.at_level(logging.INFO):
        assert len(ImageFolder(root).data) == 4
    assert "No space left" in caplog.text
    assert cache_files(root) == []


def test_what_a_killed_process_has_left_is_removed(root):
    ImageFolder(root, image_size=16)
    (root / ".cifar-lightning/train-32-1.tmp").touch()
    ImageFolder(root)
    assert [path.suffix for path in cache_files(root)] == [".pixels"] * 2


def test_several_processes_may_write_one_cache(root):
    program = "import sys; from cifar_lightning.data.folder import ImageFolder; ImageFolder(sys.argv[1])"
    first_uses = [subprocess.Popen([sys.executable, "-c", program, root], stderr=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate()[1] for process in first_uses] == [b""] * 3
    assert len(cache_files(root)) == 1
    fresh = ImageFolder(root).data
    shutil.rmtree(root / ".cifar-lightning")
    assert np.array_equal(fresh, ImageFolder(root).data)


# In several processes


@pytest.fixture
def many(root, monkeypatch) -> Path:
    """Files enough for several turns of each of two processes."""
    for number in range(11):
        write(root / f"train/cat/more{number}.png")
    monkeypatch.setattr(decoders, "NUM_FILES_WORTH_PROCESSES", 15)
    monkeypatch.setattr(decoders, "FILES_PER_TURN", 2)
    monkeypatch.setattr(decoders, "num_cores", lambda: 2)
    return root


@pytest.fixture
def processes(monkeypatch) -> list[subprocess.Popen]:
    """Those that are started."""
    found = []
    original = decoders._start

    def start() -> subprocess.Popen:
        found.append(original())
        return found[-1]

    monkeypatch.setattr(decoders, "_start", start)
    return found


def test_several_processes_read_what_one_does(many, processes):
    write(many / "train/cat/turned \u00e9 \udcff\n.jpg", noise(50, 70))  # a name that is no UTF-8, of two lines
    parallel = ImageFolder(many)
    assert [process.returncode is not None for process in processes] == [True, True]
    shutil.rmtree(many / ".cifar-lightning")
    decoders.NUM_FILES_WORTH_PROCESSES = 100
    serial = ImageFolder(many)
    assert len(processes) == 2
    np.testing.assert_array_equal(parallel.data, serial.data)


def test_several_processes_find_what_is_damaged(many, processes):
    for number in (3, 8):
        (many / f"train/cat/more{number}.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"2 paths .*cat/more3.png: not an image[^;]*; train/cat/more8.png: not an"):
        ImageFolder(many)
    assert len(processes) == 2


def test_few_but_large_files_are_worth_processes(root, processes, monkeypatch):
    monkeypatch.setattr(decoders, "NUM_BYTES_WORTH_PROCESSES", 1000)
    monkeypatch.setattr(decoders, "FILES_PER_TURN", 2)
    monkeypatch.setattr(decoders, "num_cores", lambda: 2)
    ImageFolder(root)
    assert len(processes) == 2


def test_a_process_that_is_killed_is_an_error(many, processes, monkeypatch):
    original = decoders._start

    def start() -> subprocess.Popen:
        process = original()
        process.kill()
        return process

    monkeypatch.setattr(decoders, "_start", start)
    with pytest.raises(decoders.ProcessLost, match="a process that decoded images has ended with exit code -9"):
        ImageFolder(many)
    assert cache_files(many) == []


PROGRAM = """
import os
import signal
import sys
import types
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell turns off for what it starts with &
for name, folder in {"cifar_lightning": "", "cifar_lightning.data": "data"}.items():
    sys.modules[name] = types.ModuleType(name)  # whose own imports would take seconds
    sys.modules[name].__path__ = [os.path.join(sys.argv[2], folder)]
from cifar_lightning.data import decode_pool as decoders
decoders.NUM_FILES_WORTH_PROCESSES, decoders.FILES_PER_TURN = 1, 1
decoders.num_cores = lambda: 2
original = decoders._start
def start():
    process = original()
    print(process.pid, flush=True)
    return process
decoders._start = start
pixels = memoryview(bytearray(3072 * 20_000))
decoders.decode_all([sys.argv[1]] * 20_000, pixels, image_size=32)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("seconds", [0, 0.3], ids=["starting", "decoding"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_all_processes_at_once(signum, seconds, tmp_path):
    large = write(tmp_path / "x.png", noise(300, 300))
    command = [sys.executable, "-c", PROGRAM, str(large), str(Path(decoding.__file__).parents[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        children = [int(program.stdout.readline()) for _ in range(2)]
        assert all(map(is_running, children))
        time.sleep(seconds)
        program.send_signal(signum)
        assert program.wait(timeout=5) != 0
        deadline = time.monotonic() + 5
        while any(map(is_running, children)):
            assert time.monotonic() < deadline, "a process goes on"
            time.sleep(0.01)
        errors = program.stderr.read()
    assert errors.count("Traceback") == (signum == signal.SIGINT)  # of the program alone


# The bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "seconds", "is_shown"), [(Terminal(), 2, True), (Terminal(), 0.5, False), (io.StringIO(), 2, False)]
)
def test_the_bar_is_for_terminals_and_for_work_that_takes_long(stream, seconds, is_shown, monkeypatch):
    clock = iter([0.0, *[seconds] * 1000])
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(decoders, "monotonic", lambda: next(clock))
    with decoders.late_bar("reading images", 10) as show:
        show(5)
    assert ("reading images" in stream.getvalue()) == is_shown
