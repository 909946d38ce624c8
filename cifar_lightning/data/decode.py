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
from io import BytesIO

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

Problems = dict[int, str]
"""What is wrong with a file, by the file's index in the list."""

FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""Formats that are decoded, and AVIF where Pillow can: those that photographs and pictures on the web have.

Pillow's other decoders are left out because some of them start other programs.
"""

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""What follows ``ftyp`` in HEIC files, which are read where pillow-heif is installed."""

UNKNOWN_FORMAT = "not an image of a known format"

MAX_PIXELS = 250_000_000
"""Images of more pixels are refused: a file of a few kilobytes can hold an image that fills the memory.

The largest photos of phones have 200 million pixels. Until such an image is made smaller, a worker needs 4 bytes per
pixel, 8 where it is turned or has transparency, 10 and 12 for 16-bit grey, 16 for a WebP that is turned: up to 4 GB.
"""

MAX_PIXELS_WHOLE = 89_478_485
"""JPEGs of more pixels are decoded at a half, a quarter or an eighth of their size, in a fraction of that memory.

Pillow's own limit, up to which images are decoded whole: how a JPEG is decoded changes its pixels a little.
"""


Colour = tuple[int, int, int]
"""Red, green and blue, in [0, 255]."""


def decode_files(
    paths: Sequence[str], image_size: int, background: Colour | None = None
) -> tuple[bytes, list[str], Problems]:
    """Decode image files to RGB pixels.

    An image is turned as its EXIF says and converted as torchvision does, which drops transparency. 16-bit grey is
    scaled to 8 bits, where torchvision makes it white. An image of another size is cropped to its largest centred
    square and resized with antialiasing (bilinear). Of several frames the first is read.

    Args:
        paths: The files.
        image_size: Height and width of the result, in pixels.
        background: What stands behind transparent pixels; None takes the colour that the file has there.

    Returns:
        The pixels of all images, each (image_size, image_size, 3) uint8, black where a file cannot be decoded; the
        stamps of the files, see ``file_stamp``; what is wrong with the files that cannot be decoded.
    """
    pixels = [bytes(3 * image_size * image_size)] * len(paths)
    stamps = [""] * len(paths)
    png_rows: dict[int, bytes] = {}  # of plain PNGs, by index
    problems: Problems = {}
    max_bytes = 4 * image_size * image_size + 1_000  # a plain PNG is never larger, even if it cannot be compressed
    with limited_to(MAX_PIXELS):
        for index, path in enumerate(paths):
            try:
                stamps[index], content = _stamp_and_start(path, max_bytes)
                rows = _plain_png_rows(content, image_size)
                if rows is not None:
                    png_rows[index] = rows
                else:
                    pixels[index] = _decode_with_pillow(path, content, image_size, background)
            except Exception as error:  # Pillow's decoders raise many kinds
                problems[index] = _reason(error)
    for index, image in zip(png_rows, _undo_filters(list(png_rows.values()), image_size), strict=True):
        pixels[index] = image
    return b"".join(pixels), stamps, problems


def decode_content(content: bytes, image_size: int, background: Colour | None = None) -> bytes:
    """Decode one image file that is in memory; see ``decode_files``. To be called within ``limited_to``.

    Args:
        content: The bytes of the file.
        image_size: Height and width of the result, in pixels.
        background: As in ``decode_files``.

    Raises:
        ValueError: If it cannot be decoded; says why.
    """
    if not content:
        raise ValueError("empty")
    try:
        return _decode_with_pillow(content, content, image_size, background)
    except Exception as error:  # Pillow's decoders raise many kinds
        raise ValueError(_reason(error)) from error


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


def _reason(error: Exception) -> str:
    """What is wrong with a file, in a few words."""
    if isinstance(error, UnidentifiedImageError):
        return UNKNOWN_FORMAT
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"more than {MAX_PIXELS // 10**6} million pixels: save it smaller"
    if isinstance(error, MemoryError):
        return "the memory is not enough for it: save it smaller"
    # The message of the system's errors has the path, which whoever reads it knows.
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(words.split()) or type(error).__name__


Source = str | bytes
"""A file's path, or all of its bytes."""


def _decode_with_pillow(source: Source, content: bytes, image_size: int, background: Colour | None) -> bytes:
    """Decode a file, of which ``content`` is the first bytes."""
    try:
        with Image.open(_readable(source), formats=formats_of(content)) as image:
            return pixels_of(image, image_size, background)
    except Exception as error:
        try:  # whether its pixels are whole and only its metadata damaged, or larger than Pillow allows
            with _open_without_metadata(source, content) as image:
                return pixels_of(image, image_size, background)
        except Exception:
            raise error from None


def _readable(source: Source) -> str | BytesIO:
    return BytesIO(source) if isinstance(source, bytes) else source


def pixels_of(image: Image.Image, image_size: int, background: Colour | None = None) -> bytes:
    """RGB pixels of an image of Pillow, turned, converted, cropped and resized as ``decode_files`` says.

    Raises:
        ValueError: If its pixels have no known range.
    """
    if image.width * image.height > MAX_PIXELS_WHOLE:
        image.draft(None, (2 * image_size, 2 * image_size))  # has an effect on JPEGs alone
    image.load()
    rgb = _grey_to_8_bits(_turned(image))
    if background is not None and rgb.has_transparency_data:
        picture = rgb.convert("RGBA")
        rgb = Image.new("RGBA", picture.size, background)
        rgb.alpha_composite(picture)
    if rgb.mode != "RGB":
        rgb = rgb.convert("RGB")
    if rgb.size != (image_size, image_size):
        rgb = ImageOps.fit(rgb, (image_size, image_size), method=Image.Resampling.BILINEAR)
    return rgb.tobytes()


def is_heic(content: bytes) -> bool:
    """Whether a file is HEIC, by its first bytes. AVIF may begin with a general brand too, and names its own later."""
    compatible = content[16 : int.from_bytes(content[:4], "big")]
    return content[4:8] == b"ftyp" and content[8:12] in HEIC_BRANDS and b"avif" not in compatible


def formats_of(content: bytes) -> tuple[str, ...]:
    """Formats that a file may have, by its first bytes."""
    if content[4:8] != b"ftyp":
        return FORMATS
    if is_heic(content):  # Pillow itself does not read it
        with suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
            return ("HEIF",)
        return ()
    # AVIF, which Pillow reads since 11.3.
    with suppress(ImportError):
        from PIL import AvifImagePlugin

        return (AvifImagePlugin.AvifImageFile.format,)
    return ()


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image is turned to be upright, by its orientation in EXIF."""


def _turned(image: Image.Image) -> Image.Image:
    """The image, turned as its EXIF says; as it is where its EXIF is damaged.

    ``ImageOps.exif_transpose`` also writes a new EXIF block, which fails where any entry of the old one is odd.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # there are as many kinds as ways to damage it
        return image
    return image if turn is None else image.transpose(turn)


def _open_without_metadata(source: Source, content: bytes) -> Image.Image:
    """Open an image as if it had no profile, texts and previews. It keeps its EXIF, for ``_turned``.

    Args:
        source: The file.
        content: Its first bytes.

    Raises:
        ValueError: If it is no PNG, JPEG or TIFF.
    """
    if content.startswith((b"II*", b"MM\0*")):
        image: Image.Image = Image.open(_readable(source), formats=("TIFF",))
        image.info.pop("xmp", None)
        return image
    if not content.startswith((b"\x89PNG", b"\xff\xd8\xff")):
        raise ValueError("no metadata is known")
    if isinstance(source, bytes):
        whole = source
    else:
        with open(source, "rb") as file:
            whole = file.read()
    pixels, exif = _bare_png(whole) if whole.startswith(b"\x89PNG") else _bare_jpeg(whole)
    image = Image.open(BytesIO(pixels), formats=("PNG", "JPEG"))
    if exif:
        image.info["exif"] = exif
    return image


def _bare_png(content: bytes) -> tuple[bytes, bytes]:
    """A PNG with only the chunks that make its pixels, and its EXIF."""
    kept, exif, start = [content[:8]], b"", 8
    while start < len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        kind = content[start + 4 : start + 8]
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(content[start:end])
        elif kind == b"eXIf":
            exif = b"Exif\0\0" + content[start + 8 : end - 4]
        start = end
    return b"".join(kept), exif


def _bare_jpeg(content: bytes) -> tuple[bytes, bytes]:
    """A JPEG with only the segments that make its pixels, and its EXIF."""
    kept, exif, start = [content[:2]], b"", 2
    while content[start] == 0xFF and content[start + 1] != 0xDA:  # the start of the pixels
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        marker = content[start + 1]
        if content[start + 4 : end].startswith(b"Exif\0\0"):
            exif = content[start + 4 : end]
        elif not (0xE1 <= marker <= 0xEF or marker == 0xFE) or marker == 0xEE:  # 0xEE tells how colours are stored
            kept.append(content[start:end])
        start = end
    return b"".join(kept) + content[start:], exif


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
    row_bytes = 1 + 3 * image_size
    num_bytes = image_size * row_bytes
    unpacker = zlib.decompressobj()
    try:
        rows = unpacker.decompress(content[41:end], num_bytes + 1)  # it may hold a thousand times as many
    except zlib.error:
        return None
    has_unknown_filter = rows[::row_bytes].strip(b"\0\1\2\3\4") != b""
    return None if len(rows) != num_bytes or not unpacker.eof or has_unknown_filter else rows


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
def limited_to(max_pixels: int) -> Iterator[None]:
    """Set from how many pixels on Pillow raises, and silence its warnings."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _run_worker() -> None:
    """Read a request from stdin, ``[image_size, background, lists of paths]`` as a JSON line; answer it on stdout."""
    request = sys.stdin.buffer.readline()
    # A request without its line end, or a broken pipe: the process at the other end has ended.
    if request.endswith(b"\n"):
        image_size, background, chunks = json.loads(request)
        background = background and tuple(background)
        with suppress(BrokenPipeError):
            for paths in chunks:
                _send(*decode_files(paths, image_size, background))
    os._exit(0)  # a normal exit flushes stdout once more, and fails where the pipe is broken


def _send(pixels: bytes, stamps: list[str], problems: Problems) -> None:
    """Send the answer for one list: the pixels, then ``[stamps, problems]`` as a JSON line."""
    sys.stdout.buffer.write(pixels)
    sys.stdout.buffer.write(json.dumps([stamps, [*problems.items()]]).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _run_worker()
