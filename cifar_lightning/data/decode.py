"""Decode image files to pixels of one size, in this process.

Run by its path, this file is also the program of the workers of ``decode_pool``. It imports Pillow alone and nothing of
the package, so a worker starts within 0.03 s instead of seconds, whatever the start method of multiprocessing and
whatever threads the training process runs. A worker receives its lists of files once and sends back pixels, stamps and
problems, list by list. It uses pipes: containers have little shared memory, and a pipe closes when the process at its
other end ends.
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
"""What is wrong with a file, by the file's index in the list."""

FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""Formats that are decoded: those of torchvision's extensions, and GIF, which often carries one of these extensions.

Pillow's other decoders are left out because some of them start other programs.
"""


def decode_files(paths: Sequence[str], image_size: int) -> tuple[bytes, list[str], Problems]:
    """Decode image files to RGB pixels.

    An image is turned as its EXIF says and converted as torchvision does, which drops transparency. 16-bit grey is
    scaled to 8 bits, where torchvision makes it white. An image of another size is cropped to its largest centred
    square and resized with antialiasing (bilinear).

    Args:
        paths: The files.
        image_size: Height and width of the result, in pixels.

    Returns:
        The pixels of all images, each (image_size, image_size, 3) uint8, black where a file cannot be decoded; the
        stamps of the files, see ``file_stamp``; what is wrong with the files that cannot be decoded.
    """
    pixels = [bytes(3 * image_size * image_size)] * len(paths)
    stamps = [""] * len(paths)
    png_rows: dict[int, bytes] = {}  # of plain PNGs, by index
    problems: Problems = {}
    max_bytes = 4 * image_size * image_size + 1_000  # a plain PNG is never larger, even if it cannot be compressed
    with _decompression_bombs_raise():
        for index, path in enumerate(paths):
            try:
                stamps[index], content = _stamp_and_start(path, max_bytes)
                rows = _plain_png_rows(content, image_size)
                if rows is not None:
                    png_rows[index] = rows
                else:
                    pixels[index] = _decode_with_pillow(path, image_size)
            except UnidentifiedImageError:
                problems[index] = "not an image of a known format"
            except Exception as error:  # Pillow's decoders raise many kinds
                problems[index] = " ".join(str(error).split()) or type(error).__name__
    for index, image in zip(png_rows, _undo_filters(list(png_rows.values()), image_size), strict=True):
        pixels[index] = image
    return b"".join(pixels), stamps, problems


def file_stamp(path: str) -> str:
    """A text that changes when the file is written or replaced; empty where there is no file.

    Size and modification time are not enough: two bitmaps of one archive may exchange their names.
    """
    try:
        return _stamp(os.stat(path))
    except OSError:
        return ""


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _stamp_and_start(path: str, max_bytes: int) -> tuple[str, bytes]:
    """A file's stamp and its first ``max_bytes`` bytes."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))  # a file object takes half as long again
    try:
        status = os.fstat(descriptor)
        if status.st_size == 0:
            raise ValueError("empty")
        return _stamp(status), os.read(descriptor, max_bytes)
    finally:
        os.close(descriptor)


def _decode_with_pillow(path: str, image_size: int) -> bytes:
    with Image.open(path, formats=FORMATS) as image:
        ImageOps.exif_transpose(image, in_place=True)
        rgb = _grey_to_8_bits(image).convert("RGB")
    if rgb.size != (image_size, image_size):
        rgb = ImageOps.fit(rgb, (image_size, image_size), method=Image.Resampling.BILINEAR)
    return rgb.tobytes()


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    is_16_bit_pgm = image.mode == "I" and image.format == "PPM"  # Pillow has no other mode for it
    if image.mode.startswith("I;16") or is_16_bit_pgm:
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("I", "F"):
        raise ValueError("its 32-bit pixels have no known range")
    return image


def _plain_png_rows(content: bytes, image_size: int) -> bytes | None:
    """Filtered rows of a plain PNG; None for any other content.

    A PNG is plain if it is 8-bit RGB of the right size, in one IDAT chunk, with no other chunk. Pillow also looks for
    all that such a file does not have, and takes half as long again.
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
    has_unknown_filter = rows[::row_bytes].strip(b"\0\1\2\3\4") != b""
    return None if len(rows) != image_size * row_bytes or has_unknown_filter else rows


def _undo_filters(images: list[bytes], image_size: int) -> list[bytes]:
    """Pixels of plain PNGs from their filtered rows.

    Pillow decodes all of them in one call: a call for each takes a seventh longer.
    """
    empty_row = bytes(1 + 3 * image_size)  # separates the images, as a filter may refer to the row above
    rows = b"".join(empty_row + image for image in images)
    strip = Image.new("RGB", (image_size, len(images) * (image_size + 1)))
    strip.frombytes(zlib.compress(rows, level=0), "zip", ("RGB", 0))
    pixels, row_bytes = strip.tobytes(), 3 * image_size
    stride = row_bytes + row_bytes * image_size
    return [pixels[start + row_bytes : start + stride] for start in range(0, len(pixels), stride)]


@cache
def _plain_png_start(image_size: int) -> bytes:
    side = image_size.to_bytes(4, "big")
    # 8 bits, RGB, the only compression and filter methods that PNG has, not interlaced
    header = b"IHDR" + side + side + bytes((8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + zlib.crc32(header).to_bytes(4, "big")


_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


@contextmanager
def _decompression_bombs_raise() -> Iterator[None]:
    """Raise where Pillow warns of a decompression bomb, and silence its other warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _run_worker() -> None:
    """Read one request from stdin, ``[image_size, lists of paths]`` as a JSON line, and answer it on stdout."""
    request = sys.stdin.buffer.readline()
    # A request without its line end, or a broken pipe: the process at the other end has ended.
    if request.endswith(b"\n"):
        image_size, chunks = json.loads(request)
        with suppress(BrokenPipeError):
            for paths in chunks:
                _send(*decode_files(paths, image_size))
    os._exit(0)  # a normal exit flushes stdout once more, and fails where the pipe is broken


def _send(pixels: bytes, stamps: list[str], problems: Problems) -> None:
    """Send the answer for one list: the pixels, then ``[stamps, problems]`` as a JSON line."""
    sys.stdout.buffer.write(pixels)
    sys.stdout.buffer.write(json.dumps([stamps, [*problems.items()]]).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _run_worker()
