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
from file_sizes import no_file_above
from PIL import Image

from cifar_lightning.data import decode, decode_pool
from cifar_lightning.data.arrays import fetch, to_arrays
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


# Which images are read


def test_images_are_sorted_by_class_and_path_and_keep_their_pixels(root):
    data = ImageFolder(root)
    assert data.classes == ["cat", "dog"]
    assert data.targets == [0, 0, 1, 1]
    assert data.num_val == 0
    assert data.data.dtype == np.uint8
    files = [root / "train" / name for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")]
    np.testing.assert_array_equal(data.data, np.stack([read(file) for file in files]))


def test_test_images_come_from_the_test_folder(root):
    data = ImageFolder(str(root), train=False, download=True)
    assert (data.targets, data.num_val) == ([0, 1], 0)
    np.testing.assert_array_equal(data.data[1], read(root / "test/dog/0.png"))


def test_validation_images_follow_the_training_images(root):
    write(root / "val/cat/0.png")  # and none of a dog: a class may have no validation images
    data = ImageFolder(root)
    assert (data.targets, data.num_val) == ([0, 0, 1, 1, 0], 1)
    np.testing.assert_array_equal(data.data[-1], read(root / "val/cat/0.png"))
    assert ImageFolder(root, train=False).num_val == 0


def test_its_arrays_have_channels_first(root):
    arrays = to_arrays(fetch(ImageFolder, root=root, train=True))
    assert arrays.images.shape == (4, 3, 32, 32)
    assert arrays.classes == ("cat", "dog")


def test_nested_folders_belong_to_their_class(root):
    nested = write(root / "train/cat/0/deep/x.JPG")
    data = ImageFolder(root)
    assert data.targets == [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(data.data[1], read(nested))  # "0.png" sorts before "0/deep/x.JPG"


def test_hidden_files_are_ignored(root):
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


def test_images_have_the_size_that_is_asked_for(root):
    assert ImageFolder(root, image_size=48).data.shape == (4, 48, 48, 3)


# What cannot be used


@pytest.mark.parametrize("image_size", [0, -1, 1025])
def test_an_image_size_out_of_range_is_refused(image_size, root):
    with pytest.raises(ValueError, match=rf"image_size must be in \[1, 1024\], got {image_size}"):
        ImageFolder(root, image_size=image_size)


@pytest.mark.parametrize("missing", ["", "train", "test"])
def test_root_must_have_both_splits(missing, root):
    shutil.rmtree(root / missing)
    with pytest.raises(ValueError, match=rf"^root must be .*train/<class>/.*{root / missing} is not a folder$"):
        ImageFolder(root)


def test_a_root_without_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^root must be .*none is given"):
        ImageFolder(None)
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match=r"^root must be .*train/ has no folder in it"):
        ImageFolder(tmp_path)


def test_one_message_lists_all_problems(root):
    whole = (root / "train/cat/0.png").read_bytes()
    (root / "train/cat/cut.png").write_bytes(whole[:1000])
    (root / "train/cat/none.png").write_bytes(b"")
    (root / "train/cat/notes.txt").write_text("x")
    (root / "train/cat/text.jpg").write_text("some text\n")
    (root / "train/cat/nowhere.png").symlink_to(root / "absent.png")
    (root / "train/loose.png").write_bytes(whole)
    (root / "train/empty").mkdir()
    write(root / "val/cow/0.png")
    (root / "test/dog/bad.png").write_text("no image")  # in the split that is not read
    with pytest.raises(ValueError, match=f"10 paths in {root} cannot be used, remove or mend them: ") as caught:
        ImageFolder(root)
    message = str(caught.value)
    assert "\n" not in message
    listed = dict(part.split(": ", 1) for part in message.partition("mend them: ")[2].split("; "))
    assert list(listed) == sorted(listed)
    assert "truncated" in listed.pop("train/cat/cut.png")
    assert listed == {
        "train/cat/none.png": "empty",
        "train/cat/notes.txt": "not an image, by its extension",
        "train/cat/nowhere.png": "No such file or directory",
        "train/cat/text.jpg": "not an image of a known format",
        "test/dog/bad.png": "not an image of a known format",
        "test/empty": "a class without images",
        "train/empty": "a class without images",
        "train/loose.png": "not in the folder of a class",
        "val/cow": "not a class of train/",
    }


def test_links_that_lead_in_a_circle_are_refused(root):
    (root / "train/cat/loop").symlink_to("loop")
    (root / "train/cat/around").symlink_to("..", target_is_directory=True)
    reasons = "train/cat/around: a link to a folder that contains it; train/cat/loop: Too many levels of symbolic links"
    with pytest.raises(ValueError, match=f"^2 paths in .*: {reasons}$"):
        ImageFolder(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_refused_without_waiting(root):
    os.mkfifo(root / "train/cat/pipe.png")
    with pytest.raises(ValueError, match=r"^1 path in .*: train/cat/pipe.png: not a file$"):
        ImageFolder(root)


def test_a_long_list_of_problems_is_cut(root):
    for number in range(13):
        (root / f"train/cat/bad{number:02}.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"^13 paths .*bad09.png: [^;]*; and 3 more$"):
        ImageFolder(root)


def test_the_test_folder_must_have_the_classes_of_train(root):
    (root / "test/dog").rename(root / "test/wolf")
    with pytest.raises(ValueError, match=r"2 paths .*/dog: a class without images; test/wolf: not a class of train/"):
        ImageFolder(root, train=False)


@pytest.mark.parametrize("max_pixels", [2000, 3000], ids=["Pillow's error", "Pillow's warning"])
def test_a_decompression_bomb_is_refused(max_pixels, root, monkeypatch):
    write(root / "train/cat/x.png", noise(64, 64))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", max_pixels)  # Pillow warns above it, and raises above twice that
    with pytest.raises(ValueError, match=r"1 path .*cat/x.png: Image size \(4096 pixels\) exceeds limit"):
        ImageFolder(root)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_of_unknown_range_is_refused(dtype, root):
    write(root / "train/cat/x.tif", np.ones((32, 32), dtype))
    with pytest.raises(ValueError, match=r"train/cat/x.tif: its 32-bit pixels have no known range"):
        ImageFolder(root)


def test_a_file_of_an_unknown_format_starts_no_program(root, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)  # Pillow reads PostScript with Ghostscript
    (root / "train/cat/x.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(ValueError, match=r"train/cat/x.png: not an image"):
        ImageFolder(root)


# The cache


@pytest.mark.parametrize("train", [True, False])
def test_the_second_time_pixels_come_from_the_cache(train, root):
    write(root / "val/dog/0.png")
    first = ImageFolder(root, train=train)
    (path,) = cache_files(root)
    assert path.read_bytes()[:-4] == first.data.tobytes()
    inverted = 255 - first.data  # pixels that no image file holds
    path.write_bytes(inverted.tobytes() + zlib.crc32(inverted.tobytes()).to_bytes(4, "little"))
    second = ImageFolder(root, train=train)
    np.testing.assert_array_equal(second.data, inverted)
    assert second.data.flags.writeable
    assert (second.targets, second.classes, second.num_val) == (first.targets, first.classes, first.num_val)


def test_files_that_exchange_their_names_are_noticed(root):
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


def test_a_problem_is_reported_and_the_cache_is_kept(root):
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
    os.utime(path, ns=(before, before))  # the size still differs


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
def test_a_change_of_a_file_is_noticed(change, root):
    ImageFolder(root)
    ImageFolder(root, train=False)
    ImageFolder(root, image_size=16)
    before = cache_files(root)
    change(root)
    data = ImageFolder(root)
    files = sorted((root / "train").glob("*/*.png"))
    np.testing.assert_array_equal(data.data, np.stack([read(file) for file in files]))
    after = cache_files(root)
    assert len(after) == len(before) == 3  # the outdated one is gone, those of another split or size are not
    assert len(set(after) & set(before)) == 2


@pytest.mark.parametrize("damage", ["cut", "bit", "longer", "empty", "checksum"])
def test_a_damaged_cache_is_replaced(damage, root, caplog):
    expected = ImageFolder(root).data
    (path,) = cache_files(root)
    content = bytearray(path.read_bytes())
    if damage in ("bit", "checksum"):
        content[100 if damage == "bit" else -1] ^= 1
    path.write_bytes({"cut": content[:-1], "longer": content + b"x", "empty": b""}.get(damage, content))
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(ImageFolder(root).data, expected)
    assert "the images are decoded again" in caplog.text
    caplog.clear()
    ImageFolder(root)
    assert not caplog.records


def test_images_are_read_where_no_cache_can_be_written(root, caplog):
    (root / ".cifar-lightning").touch()
    with caplog.at_level(logging.INFO):
        assert len(ImageFolder(root).data) == 4
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "the decoded images are not cached in" in caplog.text


@pytest.mark.parametrize("num_images", [0, 7, 15], ids=["at once", "while decoding", "at the checksum"])
def test_a_full_disk_costs_the_cache_alone(num_images, many, caplog):
    with caplog.at_level(logging.INFO), no_file_above(num_images * 3072):
        data = ImageFolder(many).data
    assert caplog.text.count("File too large") == 1  # of two threads that write, one reports it
    assert cache_files(many) == []
    np.testing.assert_array_equal(data, ImageFolder(many).data)
    assert len(cache_files(many)) == 1


def test_the_draft_of_a_killed_process_is_removed(root):
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


# Workers


@pytest.fixture
def many(root, monkeypatch) -> Path:
    """15 training images, which two workers decode in several chunks each."""
    for number in range(11):
        write(root / f"train/cat/more{number}.png")
    monkeypatch.setattr(decode_pool, "MIN_FILES_FOR_WORKERS", 15)
    monkeypatch.setattr(decode_pool, "MAX_FILES_PER_CHUNK", 2)
    monkeypatch.setattr(decode_pool, "num_cores", lambda: 2)
    return root


@pytest.fixture
def workers(monkeypatch) -> list[subprocess.Popen]:
    """The processes that are started."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    return started


def test_workers_decode_the_same_pixels_as_one_process(many, workers, monkeypatch):
    write(many / "train/cat/turned \u00e9 \udcff\n.jpg", noise(50, 70))  # a name that is not UTF-8 and has two lines
    parallel = ImageFolder(many)
    assert [worker.returncode is not None for worker in workers] == [True, True]
    shutil.rmtree(many / ".cifar-lightning")
    monkeypatch.setattr(decode_pool, "MIN_FILES_FOR_WORKERS", 100)
    serial = ImageFolder(many)
    assert len(workers) == 2
    np.testing.assert_array_equal(parallel.data, serial.data)


def test_workers_report_damaged_files(many, workers):
    for number in (3, 8):
        (many / f"train/cat/more{number}.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"2 paths .*cat/more3.png: not an image[^;]*; train/cat/more8.png: not an"):
        ImageFolder(many)
    assert len(workers) == 2


def test_workers_decode_a_few_large_files(root, workers, monkeypatch):
    monkeypatch.setattr(decode_pool, "MIN_BYTES_FOR_WORKERS", 1000)
    monkeypatch.setattr(decode_pool, "MAX_FILES_PER_CHUNK", 2)
    monkeypatch.setattr(decode_pool, "num_cores", lambda: 2)
    ImageFolder(root)
    assert len(workers) == 2


def test_a_killed_worker_is_an_error(many, monkeypatch):
    class Killed(subprocess.Popen):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            self.kill()

    monkeypatch.setattr(subprocess, "Popen", Killed)
    with pytest.raises(decode_pool.WorkerLost, match="a process that decodes images ended with exit code -9"):
        ImageFolder(many)
    assert cache_files(many) == []


PROGRAM = """
import os
import signal
import subprocess
import sys
import types
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell turns it off in what it starts with &
for name, folder in {"cifar_lightning": "", "cifar_lightning.data": "data"}.items():
    sys.modules[name] = types.ModuleType(name)  # without the imports of the packages, which take seconds
    sys.modules[name].__path__ = [os.path.join(sys.argv[2], folder)]
from cifar_lightning.data import decode_pool
decode_pool.MIN_FILES_FOR_WORKERS, decode_pool.MAX_FILES_PER_CHUNK = 1, 1
decode_pool.num_cores = lambda: 2
class Printed(subprocess.Popen):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        print(self.pid, flush=True)
subprocess.Popen = Printed
pixels = memoryview(bytearray(3072 * 20_000))
decode_pool.decode_many([sys.argv[1]] * 20_000, pixels, image_size=32)
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("seconds", [0, 0.3], ids=["starting", "decoding"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_program_and_its_workers(signum, seconds, tmp_path):
    large = write(tmp_path / "x.png", noise(300, 300))
    command = [sys.executable, "-c", PROGRAM, str(large), str(Path(decode.__file__).parents[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        pids = [int(program.stdout.readline()) for _ in range(2)]
        assert all(map(is_running, pids))
        time.sleep(seconds)
        program.send_signal(signum)
        assert program.wait(timeout=5) != 0
        deadline = time.monotonic() + 5
        while any(map(is_running, pids)):
            assert time.monotonic() < deadline, "a worker still runs"
            time.sleep(0.01)
        errors = program.stderr.read()
    assert errors.count("Traceback") == (signum == signal.SIGINT)  # and none of a worker


# The progress bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "delay_seconds", "is_shown"), [(Terminal(), 0, True), (Terminal(), 60, False), (io.StringIO(), 0, False)]
)
def test_the_bar_appears_on_terminals_and_after_its_delay(stream, delay_seconds, is_shown, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    with decode_pool.delayed_progress("reading images", 10, delay_seconds=delay_seconds) as show:
        time.sleep(0.001)
        show(5)
    assert ("reading images" in stream.getvalue()) == is_shown
