"""Image files to pixels of one size: in this process, or for many files in several.

This file is also the program of those processes. It is started by its path and imports Pillow alone, so a process is at
work after a twentieth of a second, where one that imports the package takes seconds, and neither multiprocessing's
start method nor the threads of the process that trains matter.
"""

import io
import json
import os
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from time import monotonic
from typing import BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

Problems = dict[int, str]
"""From a file's place in the list to what is wrong with it."""

FORMATS = ("PNG", "JPEG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""Those of torchvision's extensions, and GIF, which is found under them: others of Pillow's start other programs."""

NUM_FILES_WORTH_PROCESSES = 2_000
NUM_BYTES_WORTH_PROCESSES = 20_000_000
FILES_PER_TURN = 100


class ProcessLost(Exception):
    """A process that decodes was ended from outside, as where memory is scarce: no fault of the images."""


def decode(path: str, image_size: int) -> bytes:
    """Pixels of an image file, RGB, (image_size, image_size, 3) uint8.

    The image is turned as its EXIF says and converted as torchvision does (transparency is dropped), but 16-bit grey is
    scaled, where that would make it white. An image of another size gives its largest centred square, resized with
    antialiasing (bilinear).

    Raises:
        Exception: Of any kind, if the file is damaged: Pillow has no common one.
    """
    with open(path, "rb", buffering=0) as file:  # the buffer would cost as much as the reading
        most = 4 * image_size * image_size + 1_000  # bytes of a plain one, even where nothing can be packed
        pixels = _plain_png(file.read(most), image_size)
    if pixels is None:
        with open(path, "rb") as file:
            pixels = _any_image(file, image_size)
    return pixels


def _any_image(file: BinaryIO, image_size: int) -> bytes:
    with Image.open(file, formats=FORMATS) as image:
        ImageOps.exif_transpose(image, in_place=True)
        rgb = _grey8(image).convert("RGB")
    if rgb.size != (image_size, image_size):
        rgb = ImageOps.fit(rgb, (image_size, image_size), method=Image.Resampling.BILINEAR)
    return rgb.tobytes()


def _plain_png(content: bytes, image_size: int) -> bytes | None:
    """Pixels of a PNG that holds 8-bit RGB of the right size in one piece, and nothing else; None for any other file.

    By Pillow's own decoder, but without the search for what such a file does not hold: two thirds of the time.
    """
    end = 41 + int.from_bytes(content[33:37], "big")
    if not content.startswith(_plain_png_start(image_size)) or content[37:41] != b"IDAT":
        return None
    if content[end:] != zlib.crc32(content[37:end]).to_bytes(4, "big") + _PNG_END:
        return None
    image = _blank(image_size)
    image.frombytes(content[41:end], "zip", ("RGB", 0))
    return image.tobytes()


@cache
def _blank(image_size: int) -> Image.Image:
    """An image to decode into, one after the other: making one takes a tenth of the time."""
    return Image.new("RGB", (image_size, image_size))


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


def _decoded(path: str, image_size: int) -> tuple[bytes, str | None]:
    """Pixels, black where there are none, and what is wrong with the file."""
    try:
        return decode(path, image_size), None
    except UnidentifiedImageError:
        reason = "not an image, or one of another kind"
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    return bytes(3 * image_size * image_size), reason


def decode_all(paths: Sequence[str], pixels: memoryview, *, image_size: int, num_bytes: int) -> Problems:
    """Decode files into one buffer, one after the other or for many in as many processes as there are cores.

    Args:
        paths: The files.
        pixels: Where their pixels go: bytes, ``3 * image_size**2`` of each file.
        image_size: Height and width, in pixels.
        num_bytes: Size of all files together.

    Raises:
        ProcessLost: If a process that decodes is ended from outside.
    """
    num_processes = min(num_cores(), -(-len(paths) // FILES_PER_TURN))
    is_much = len(paths) >= NUM_FILES_WORTH_PROCESSES or num_bytes >= NUM_BYTES_WORTH_PROCESSES
    with late_bar("reading images", len(paths)) as show:
        if is_much and num_processes > 1:
            return _in_processes(paths, pixels, image_size, num_processes, show)
        return _here(paths, pixels, image_size, show)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _here(paths: Sequence[str], pixels: memoryview, image_size: int, show: Callable[[int], None]) -> Problems:
    stride = 3 * image_size * image_size
    problems: Problems = {}
    with _only_bombs_warn():
        for index, path in enumerate(paths):
            pixels[index * stride : (index + 1) * stride], reason = _decoded(path, image_size)
            if reason is not None:
                problems[index] = reason
            if index % FILES_PER_TURN == 0:
                show(index)
    return problems


@contextmanager
def late_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress bar on stderr, there only where it is a terminal and once the work has taken a second.

    Gives the function that is to be called now and then with what is done.
    """
    with ExitStack() as stack:
        started = monotonic()
        update: Callable[[int], None] | None = None

        def show(done: int) -> None:
            nonlocal update
            if update is None and monotonic() - started > 1 and sys.stderr.isatty():
                update = stack.enter_context(_bar(title, total))
            if update is not None:
                update(done)

        yield show


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console  # here, as the processes that decode need none of it
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


# In several processes: each is sent its list of files once, and sends back, turn by turn, pixels and what is wrong.
# By pipes, as shared memory is scarce in containers, and as a pipe ends with the process at its other end.


def _turns(num_files: int, number: int, num_processes: int) -> list[range]:
    """Files of a process: every so many turns, so that a folder of larger images is shared by all."""
    starts = range(number * FILES_PER_TURN, num_files, num_processes * FILES_PER_TURN)
    return [range(start, min(start + FILES_PER_TURN, num_files)) for start in starts]


def _in_processes(
    paths: Sequence[str], pixels: memoryview, image_size: int, num_processes: int, show: Callable[[int], None]
) -> Problems:
    problems: Problems = {}
    done = [0] * num_processes

    def receive(number: int) -> None:
        turns = _turns(len(paths), number, num_processes)
        request = json.dumps([image_size, [[paths[index] for index in turn] for turn in turns]]).encode() + b"\n"
        for turn, reasons in zip(turns, _replies(processes[number], request, pixels, turns, image_size), strict=True):
            done[number] += len(turn)
            problems.update({turn[int(place)]: reason for place, reason in reasons.items()})

    processes: list[subprocess.Popen[bytes]] = []
    # However it ends: the processes are killed, so the threads that read from them return, so the pipes can be closed.
    with ExitStack() as pipes, ThreadPoolExecutor(num_processes) as threads, ExitStack() as running:
        for _ in range(num_processes):
            processes.append(_start())
            pipes.callback(_close, processes[-1])
            running.callback(processes[-1].kill)
        pending = {threads.submit(receive, number) for number in range(num_processes)}
        while pending:
            finished, pending = wait(pending, timeout=0.1, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
            show(sum(done))
    return problems


def _start() -> "subprocess.Popen[bytes]":
    # -P: this file's folder holds modules that are not to be found by their bare names. A process group of its own, as
    # a terminal sends Ctrl-C to all processes of one, and only this process is to answer it.
    command = [sys.executable, "-P", "-W", "ignore", __file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)


def _close(process: "subprocess.Popen[bytes]") -> None:
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):
            pipe.close()


def _replies(
    process: "subprocess.Popen[bytes]", request: bytes, pixels: memoryview, turns: list[range], image_size: int
) -> Iterator[dict[str, str]]:
    stride = 3 * image_size * image_size
    assert process.stdin is not None
    assert isinstance(process.stdout, io.BufferedReader)
    with suppress(BrokenPipeError):  # it has gone; the next lines say so
        process.stdin.write(request)
        process.stdin.close()
    for turn in turns:
        wanted = pixels[turn.start * stride : turn.stop * stride]
        reasons = process.stdout.readline() if process.stdout.readinto(wanted) == len(wanted) else b""
        if not reasons:
            raise ProcessLost(f"a process that decoded images has ended with exit code {process.wait()}")
        yield json.loads(reasons)


def _serve() -> None:
    """What each of the processes does."""
    request = sys.stdin.buffer.readline()
    # Without its end, or when the pipe breaks, the process at the other end has gone.
    if request.endswith(b"\n"):
        image_size, turns = json.loads(request)
        with suppress(BrokenPipeError), _only_bombs_warn():
            for paths in turns:
                _reply([_decoded(path, image_size) for path in paths])
    os._exit(0)  # without another flush into that pipe


def _reply(decoded: list[tuple[bytes, str | None]]) -> None:
    reasons = {place: reason for place, (_, reason) in enumerate(decoded) if reason is not None}
    sys.stdout.buffer.write(b"".join(pixels for pixels, _ in decoded))
    sys.stdout.buffer.write(json.dumps(reasons).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
