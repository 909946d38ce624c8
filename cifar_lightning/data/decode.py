"""Image files to pixels of one size, and a program that does so for another process.

The program is started by this file's path and imports Pillow alone, so it is at work after a thirtieth of a second,
where one that imports the package takes seconds, and neither multiprocessing's start method nor the threads of the
process that trains matter. It is sent its lists of files once, a list a turn, and sends back, turn by turn, pixels,
stamps and what is wrong. By pipes, as shared memory is scarce in containers, and as a pipe ends with the process at its
other end.
"""

import json
import os
import sys
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache

from PIL import Image, ImageOps, UnidentifiedImageError

Problems = dict[int, str]
"""From a file's place in the list to what is wrong with it."""

FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""Those of torchvision's extensions, and GIF, which is found under them: others of Pillow's start other programs."""


def decode(paths: Sequence[str], image_size: int) -> tuple[bytes, list[str], Problems]:
    """Pixels of image files, RGB, each (image_size, image_size, 3) uint8, black where there are none; their stamps.

    An image is turned as its EXIF says and converted as torchvision does (transparency is dropped), but 16-bit grey is
    scaled, where that would make it white. An image of another size gives its largest centred square, resized with
    antialiasing (bilinear).
    """
    pixels = [bytes(3 * image_size * image_size)] * len(paths)
    stamps = [""] * len(paths)
    plain: dict[int, bytes] = {}
    problems: Problems = {}
    most = 4 * image_size * image_size + 1_000  # bytes of a plain PNG, even where nothing can be packed
    with _only_bombs_warn():
        for place, path in enumerate(paths):
            try:
                stamps[place], content = _start_of(path, most)
                filtered = _plain_png(content, image_size)
                if filtered is not None:
                    plain[place] = filtered
                else:
                    pixels[place] = _any_image(path, image_size)
            except UnidentifiedImageError:
                problems[place] = "not an image, or one of another kind"
            except Exception as error:  # of any kind, as Pillow has no common one
                problems[place] = " ".join(str(error).split()) or type(error).__name__
    for place, image in zip(plain, _unfiltered(list(plain.values()), image_size), strict=True):
        pixels[place] = image
    return b"".join(pixels), stamps, problems


def _start_of(path: str, most: int) -> tuple[str, bytes]:
    """A file's stamp and its first bytes."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))  # a file object would cost half as much again
    try:
        status = os.fstat(descriptor)
        if status.st_size == 0:
            raise ValueError("empty")
        return _stamp(status), os.read(descriptor, most)
    finally:
        os.close(descriptor)


def file_stamp(path: str) -> str:
    """What changes when a file is written or another takes its place; empty where there is none.

    Size and time of change alone would not tell two bitmaps of one archive that have changed places.
    """
    try:
        return _stamp(os.stat(path))
    except OSError:
        return ""


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _any_image(path: str, image_size: int) -> bytes:
    with Image.open(path, formats=FORMATS) as image:
        ImageOps.exif_transpose(image, in_place=True)
        rgb = _grey8(image).convert("RGB")
    if rgb.size != (image_size, image_size):
        rgb = ImageOps.fit(rgb, (image_size, image_size), method=Image.Resampling.BILINEAR)
    return rgb.tobytes()


def _plain_png(content: bytes, image_size: int) -> bytes | None:
    """Filtered rows of a PNG that holds 8-bit RGB of the right size in one piece and nothing else; None for others.

    Pillow by itself looks for all that such a file does not hold, and takes half as long again.
    """
    end = 41 + int.from_bytes(content[33:37], "big")
    if not content.startswith(_plain_png_start(image_size)) or content[37:41] != b"IDAT":
        return None
    if content[end:] != zlib.crc32(content[37:end]).to_bytes(4, "big") + _PNG_END:
        return None
    try:
        rows = zlib.decompress(content[41:end])
    except zlib.error:
        return None
    row_bytes = 1 + 3 * image_size
    has_other_filter = rows[::row_bytes].strip(b"\0\1\2\3\4") != b""
    return None if len(rows) != image_size * row_bytes or has_other_filter else rows


def _unfiltered(images: list[bytes], image_size: int) -> list[bytes]:
    """Pixels of plain PNGs, by Pillow's decoder: of all in one call, where one for each would take a seventh longer."""
    empty_row = bytes(1 + 3 * image_size)  # before an image, as filters look at the row above
    rows = b"".join(empty_row + image for image in images)
    strip = Image.new("RGB", (image_size, len(images) * (image_size + 1)))
    strip.frombytes(zlib.compress(rows, level=0), "zip", ("RGB", 0))
    pixels, above = strip.tobytes(), 3 * image_size
    stride = above + above * image_size
    return [pixels[start + above : start + stride] for start in range(0, len(pixels), stride)]


@cache
def _plain_png_start(image_size: int) -> bytes:
    side = image_size.to_bytes(4, "big")
    header = b"IHDR" + side + side + bytes((8, 2, 0, 0, 0))  # bits, RGB, the one compression and filter, not interlaced
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + zlib.crc32(header).to_bytes(4, "big")


_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def _grey8(image: Image.Image) -> Image.Image:
    is_pgm = image.mode == "I" and image.format == "PPM"  # Pillow's mode for one of 16 bits
    if image.mode.startswith("I;16") or is_pgm:
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("I", "F"):
        raise ValueError("its 32-bit pixels have no known range")
    return image


@contextmanager
def _only_bombs_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _serve() -> None:
    """What each of the processes does."""
    request = sys.stdin.buffer.readline()
    # Without its end, or when the pipe breaks, the process at the other end has gone.
    if request.endswith(b"\n"):
        image_size, turns = json.loads(request)
        with suppress(BrokenPipeError):
            for paths in turns:
                _reply(*decode(paths, image_size))
    os._exit(0)  # without another flush into that pipe


def _reply(pixels: bytes, stamps: list[str], problems: Problems) -> None:
    sys.stdout.buffer.write(pixels)
    sys.stdout.buffer.write(json.dumps([stamps, [*problems.items()]]).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
