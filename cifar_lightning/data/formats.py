"""Formats of image files: which are read, and what another file is, for error messages."""

import importlib.util
import os
import warnings
from contextlib import suppress

from PIL import features

from cifar_lightning.data.decode import HEIC_BRANDS, is_heic

HAS_HEIC = importlib.util.find_spec("pillow_heif") is not None
"""Whether HEIC, the format of iPhones, is read."""

EXTENSIONS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".apng", ".avif"),
    *((".heic", ".heif", ".hif") if HAS_HEIC else ()),
)
"""Extensions of the files that are read: all of torchvision's, and other names of formats that are decoded.

The content may be of another of these formats than the extension says. It decides, as in every viewer.
"""

NOT_READ = "which is not read"

HELP = "Images that are read are PNG, JPEG, WebP, AVIF, GIF, TIFF, BMP and PPM: convert others to one of these"

_OTHER_EXTENSIONS = {
    "HEIC": ".heic .heif .hif",
    "JPEG XL": ".jxl",
    "JPEG 2000": ".jp2 .j2k .j2c .jpf .jpx",
    "SVG": ".svg .svgz",
    "an icon": ".ico .icns",
    "Photoshop's format": ".psd .psb",
    "a camera's raw format": ".dng .raw .cr2 .cr3 .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw",
    "OpenEXR": ".exr",
    "a document": ".pdf .ps .eps .ai .doc .docx .ppt .pptx",
    "a video": ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .3gp .wmv",
    "an array": ".npy .npz .mat .h5 .hdf5 .pt .pkl .parquet",
    "an archive": ".zip .tar .gz .tgz .bz2 .xz .7z .rar",
}
_KIND_BY_EXTENSION = {ending: kind for kind, endings in _OTHER_EXTENSIONS.items() for ending in endings.split()}

_KIND_BY_START = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"<svg": "SVG",
    b"\0\0\1\0": "an icon",
    b"8BPS": "Photoshop's format",
    b"\x76\x2f\x31\x01": "OpenEXR",
    b"%pdf": "a document",
    b"%!ps": "a document",
    b"\x1a\x45\xdf\xa3": "a video",
    b"\x93NUMPY": "an array",
    b"PK\3\4": "an archive",
    b"\x1f\x8b": "an archive",
    b"7z\xbc\xaf": "an archive",
    b"rar!": "an archive",
}
_READ_BY_START = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
}
_AVIF_BRANDS = (b"avif", b"avis")

START_BYTES = 1_000
"""How much of a file says what it is."""


def why_not_by_name(name: str) -> str:
    """Why a file is not read that has none of ``EXTENSIONS``."""
    kind = _KIND_BY_EXTENSION.get(os.path.splitext(name.lower())[1])
    return "not an image, by its extension" if kind is None else f"{kind} by its extension, {NOT_READ}"


def why_not_by_content(path: str) -> str:
    """Why a file is not read that no decoder takes for an image, by its first bytes."""
    start = b""
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(START_BYTES)
    return why_not_by_start(start)


def why_not_by_start(start: bytes) -> str:
    """Why a file is not read that no decoder takes for an image; ``start`` is its first ``START_BYTES`` bytes."""
    if not start.strip(b"\0"):
        return "nothing but zero bytes: it was not copied or downloaded whole"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, not an image"
    if text.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not an image: git lfs pull gets the image"
    for read_start, kind in _READ_BY_START.items():
        if start.startswith(read_start):
            return f"a damaged {kind} file"
    other = _kind(start, text)
    return "not an image of a known format" if other is None else f"{other} by its content, {NOT_READ}"


def _kind(start: bytes, text: bytes) -> str | None:
    if start[4:8] == b"ftyp":  # one container for photos and videos
        brand = start[8:12]
        if brand in _AVIF_BRANDS or (brand in HEIC_BRANDS and not is_heic(start)):
            return _avif()
        return _heic() if is_heic(start) else "a video"
    if text.startswith(b"<?xml") and b"<svg" in text:
        return "SVG"
    starts = (kind for known, kind in _KIND_BY_START.items() if start.startswith(known) or text.startswith(known))
    return next(starts, None)


def has_avif() -> bool:
    """Whether this Pillow decodes AVIF."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow before 11.3 does not know the question
        return bool(features.check("avif"))


def _avif() -> str:
    if has_avif():
        return "AVIF of a kind that Pillow does not decode, or damaged,"
    return "AVIF, for which this Pillow is too old (pip install -U pillow),"


def _heic() -> str:
    if HAS_HEIC:
        return "HEIC of a kind that pillow-heif does not decode, or damaged,"
    return "HEIC, for which pillow-heif is not installed (pip install pillow-heif),"
