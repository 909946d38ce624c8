"""Formats that are read, and what is said of files of others."""

from pathlib import Path

import numpy as np
import pytest
from pictures import noise, read, write, write_pets
from PIL import Image, features
from torchvision.datasets.folder import IMG_EXTENSIONS

from cifar_lightning.data import formats
from cifar_lightning.data.folder import ImageFolder

HELP = r"\. Images that are read are PNG, JPEG, WebP, AVIF, GIF, TIFF, BMP and PPM: convert others to one of these$"
needs_avif = pytest.mark.skipif(not formats.has_avif(), reason="this Pillow has no AVIF")


@pytest.fixture
def root(tmp_path) -> Path:
    return write_pets(tmp_path)


def test_all_extensions_of_torchvision_are_read():
    assert set(formats.EXTENSIONS) > set(IMG_EXTENSIONS)


@pytest.mark.parametrize(
    "extension", [e if e != ".avif" else pytest.param(e, marks=needs_avif) for e in formats.EXTENSIONS]
)
def test_a_file_of_each_extension_is_read(extension, root):
    name = Path("2" + extension.upper())
    if extension in (".heic", ".heif", ".hif"):
        pytest.importorskip("pillow_heif").register_heif_opener()
    kinds = {".jfif": "JPEG", ".apng": "PNG", ".pbm": "PPM", ".pnm": "PPM", ".heic": "HEIF", ".hif": "HEIF"}
    mode = {".pbm": "1", ".pgm": "L", ".gif": "P"}.get(extension, "RGB")
    path = write(root / "train/cat" / name, Image.fromarray(noise()).convert(mode), format=kinds.get(extension))
    np.testing.assert_array_equal(ImageFolder(root).data[2], read(path))


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", pytest.param("AVIF", marks=needs_avif)]
)
def test_the_content_decides_not_the_extension(kind, root):
    path = write(root / "train/cat/2.jpg", format=kind)
    np.testing.assert_array_equal(ImageFolder(root).data[2], read(path))


def test_of_several_frames_the_first_is_read(root):
    frames = [Image.fromarray(noise()).convert("P") for _ in range(3)]
    path = write(root / "train/cat/2.gif", frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(ImageFolder(root).data[2], read(path))


HEIC = (
    "HEIC of a kind that pillow-heif does not decode, or damaged,"
    if formats.HAS_HEIC
    else "HEIC, for which pillow-heif is not installed (pip install pillow-heif),"
)
without_heic = pytest.mark.skipif(formats.HAS_HEIC, reason="pillow-heif is installed, and reads it")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param("x.heic", "HEIC", marks=without_heic),
        pytest.param("x.HEIF", "HEIC", marks=without_heic),
        ("x.jxl", "JPEG XL"),
        ("x.svg", "SVG"),
        ("x.jp2", "JPEG 2000"),
        ("x.psd", "Photoshop's format"),
        ("x.NEF", "a camera's raw format"),
        ("x.pdf", "a document"),
        ("x.mp4", "a video"),
        ("x.npy", "an array"),
        ("x.zip", "an archive"),
    ],
)
def test_a_format_that_is_not_read_is_named_by_its_extension(name, kind, root):
    (root / "train/cat" / name).touch()
    expected = f"^1 path in .*: train/cat/{name}: {kind} by its extension, which is not read{HELP}"
    with pytest.raises(ValueError, match=expected):
        ImageFolder(root)


BOX = b"\0\0\0\x1cftyp"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (BOX + b"heic\0\0\0\0mif1heic", HEIC),
        (BOX + b"mif1\0\0\0\0mif1heic", HEIC),
        (BOX + b"avif\0\0\0\0avifmif1", "AVIF of a kind that Pillow does not decode, or damaged,"),
        (BOX + b"isom\0\0\0\0isomavc1", "a video"),
        (b"\xff\x0a" + bytes(50), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b'<svg xmlns="http://www.w3.org/2000/svg">', "SVG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a -->\n<svg>', "SVG"),
        (b"%PDF-1.7\n", "a document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a document"),
        (b"8BPS\0\1", "Photoshop's format"),
        (b"PK\3\4\n", "an archive"),
    ],
)
def test_a_format_that_is_not_read_is_named_by_its_content(content, kind, root, monkeypatch):
    monkeypatch.setattr(features, "check", lambda feature: feature == "avif")
    (root / "train/cat/x.jpg").write_bytes(content)
    expected = f"^1 path in .*: train/cat/x.jpg: {kind} by its content, which is not read{HELP}"
    with pytest.raises(ValueError, match=expected):
        ImageFolder(root)


def test_avif_needs_a_newer_pillow(root, monkeypatch):
    monkeypatch.setattr(features, "check", lambda feature: False)
    (root / "train/cat/x.jpg").write_bytes(BOX + b"avif\0\0\0\0avifmif1")
    with pytest.raises(ValueError, match=r"AVIF, for which this Pillow is too old \(pip install -U pillow\), by its"):
        ImageFolder(root)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\r\n<!DOCTYPE html><title>404", "a web page, not an image"),
        (b"<HTML>", "a web page, not an image"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:",
            "a pointer of Git LFS, not an image: git lfs pull",
        ),
        (bytes(5000), "nothing but zero bytes: it was not copied or downloaded whole$"),
        (b"\xff\xd8\xff\xd9", "a damaged JPEG file$"),
        (b"\x89PNG\r\n\x1a\n", "a damaged PNG file$"),
        (b"hello", "not an image of a known format$"),
    ],
)
def test_what_is_no_image_is_named(content, reason, root):
    (root / "train/cat/x.png").write_bytes(content)
    with pytest.raises(ValueError, match=f"^1 path in .*: train/cat/x.png: {reason}"):
        ImageFolder(root)
