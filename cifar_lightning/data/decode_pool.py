"""Decode many image files: a few in this process, many in a pool of workers that run ``decode.py`` by its path."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from time import monotonic
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cifar_lightning.cores import num_cores
from cifar_lightning.data import decode

MIN_FILES_FOR_WORKERS = 2_000
MIN_BYTES_FOR_WORKERS = 20_000_000
"""Workers are started for so many files, or for files of so many bytes in all. Fewer are decoded faster without."""

MAX_FILES_PER_CHUNK = 40
"""A chunk is decoded in one call. The pixels of so many small images fit into the cache of a core."""

MAX_BYTES_PER_CHUNK = 4_000_000
"""Bytes of pixels."""

_How = tuple[int, decode.Colour | None]
"""``image_size`` and ``background`` of ``decode.decode_files``."""

Write = Callable[[memoryview, int], None]
"""``(pixels, start)``: takes a part of the pixels, whose first byte is byte ``start`` of all pixels."""


class WorkerLost(Exception):
    """A worker was ended from outside, as the system does where memory is scarce. The images are not at fault."""


def write_nowhere(pixels: memoryview, start: int) -> None:
    """A ``Write`` that does nothing."""


def decode_many(
    paths: Sequence[str],
    pixels: memoryview | None,
    *,
    image_size: int,
    background: decode.Colour | None = None,
    write: Write = write_nowhere,
    show: Callable[[int], None] | None = None,
) -> tuple[list[str], decode.Problems]:
    """Decode files into one buffer: a few one after the other, many in as many workers as there are cores.

    Args:
        paths: The files.
        pixels: Bytes that receive the pixels, ``3 * image_size**2`` of each file; see ``decode.decode_files``. None
            where they would not fit into memory: ``write`` alone gets them.
        image_size: Height and width, in pixels.
        background: What stands behind transparent pixels; see ``decode.decode_files``.
        write: Called with each part of the pixels as soon as it is decoded, from several threads.
        show: Called now and then with the number of decoded files; None shows a progress bar of its own.

    Returns:
        The stamps of the files, and what is wrong with the files that cannot be decoded.

    Raises:
        WorkerLost: If a worker is ended from outside.
    """
    results = _Results(pixels, 3 * image_size * image_size, [""] * len(paths), {}, [], write)
    chunks = _chunks(len(paths), image_size)
    num_workers = min(num_cores(), len(chunks))
    with delayed_progress("reading images", len(paths)) if show is None else nullcontext(show) as show:
        if num_workers > 1 and _are_worth_workers(paths):
            _decode_in_workers(paths, results, (image_size, background), chunks, num_workers, show)
        else:
            _decode_here(paths, results, (image_size, background), chunks, show)
    return results.stamps, results.problems


class _Results(NamedTuple):
    """Collects what is decoded, from several threads."""

    pixels: memoryview | None
    bytes_per_image: int
    stamps: list[str]
    problems: decode.Problems
    num_decoded: list[int]
    """Numbers of files, one per chunk. Threads can append to a list without a lock."""
    write: Write

    def place_of(self, chunk: range) -> memoryview:
        """Where a chunk's pixels belong."""
        if self.pixels is None:
            return memoryview(bytearray(len(chunk) * self.bytes_per_image))
        return self.pixels[chunk.start * self.bytes_per_image : chunk.stop * self.bytes_per_image]

    def add(self, chunk: range, pixels: memoryview, stamps: list[str], problems: decode.Problems) -> None:
        """Take the results of a chunk whose pixels are in place."""
        self.stamps[chunk.start : chunk.stop] = stamps
        self.problems.update({chunk[index]: problem for index, problem in problems.items()})
        self.num_decoded.append(len(chunk))
        self.write(pixels, chunk.start * self.bytes_per_image)


def _chunks(num_files: int, image_size: int) -> list[range]:
    """Indices of the files of each chunk."""
    size = max(1, min(MAX_FILES_PER_CHUNK, MAX_BYTES_PER_CHUNK // (3 * image_size * image_size)))
    return [range(start, min(start + size, num_files)) for start in range(0, num_files, size)]


def _are_worth_workers(paths: Sequence[str]) -> bool:
    return len(paths) >= MIN_FILES_FOR_WORKERS or sum(map(_num_bytes, paths)) >= MIN_BYTES_FOR_WORKERS


def _num_bytes(path: str) -> int:
    with suppress(OSError):
        return os.path.getsize(path)
    return 0


def _decode_here(
    paths: Sequence[str], results: _Results, how: _How, chunks: Sequence[range], show: Callable[[int], None]
) -> None:
    for chunk in chunks:
        pixels, stamps, problems = decode.decode_files(paths[chunk.start : chunk.stop], *how)
        place = results.place_of(chunk)
        place[:] = pixels
        results.add(chunk, place, stamps, problems)
        show(chunk.stop)


def _decode_in_workers(
    paths: Sequence[str],
    results: _Results,
    how: _How,
    chunks: Sequence[range],
    num_workers: int,
    show: Callable[[int], None],
) -> None:
    def receive(number: int) -> None:
        own = chunks[number::num_workers]  # interleaved, so that the workers share a folder of larger images
        request = json.dumps([*how, [paths[chunk.start : chunk.stop] for chunk in own]]).encode() + b"\n"
        _receive(workers[number], request, own, results)

    workers: list[subprocess.Popen[bytes]] = []
    # Leaving these contexts, also after an error, kills the workers first: only then do the threads that read from them
    # return, and only then can the pipes be closed.
    with ExitStack() as pipes, ThreadPoolExecutor(num_workers) as threads, ExitStack() as running:
        for _ in range(num_workers):
            workers.append(_start_worker())
            pipes.callback(_close, workers[-1])
            running.callback(workers[-1].kill)
        pending = {threads.submit(receive, number) for number in range(num_workers)}
        while pending:
            finished, pending = wait(pending, timeout=0.1, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
            show(sum(results.num_decoded))


def _start_worker() -> "subprocess.Popen[bytes]":
    # -P keeps the modules beside decode.py from hiding others of the same name. A process group of its own keeps the
    # terminal's Ctrl-C away from the worker: only this process answers it.
    command = [sys.executable, "-P", "-W", "ignore", decode.__file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)


def _close(worker: "subprocess.Popen[bytes]") -> None:
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):
            pipe.close()


def _receive(worker: "subprocess.Popen[bytes]", request: bytes, chunks: Sequence[range], results: _Results) -> None:
    """Send a worker its request, and take its answer for each chunk; ``decode`` says how both look."""
    assert worker.stdin is not None
    assert isinstance(worker.stdout, io.BufferedReader)
    with suppress(BrokenPipeError):  # the worker has ended, which the loop below reports
        worker.stdin.write(request)
        worker.stdin.close()
    for chunk in chunks:
        wanted = results.place_of(chunk)
        line = worker.stdout.readline() if worker.stdout.readinto(wanted) == len(wanted) else b""
        if not line:
            code = worker.wait()
            hint = "; the memory may be too small for the largest images" if code == -9 else ""
            raise WorkerLost(f"a process that decodes images ended with exit code {code}{hint}")
        stamps, problems = json.loads(line)
        results.add(chunk, wanted, stamps, dict(problems))


@contextmanager
def delayed_progress(title: str, total: int, *, delay_seconds: float = 1) -> Iterator[Callable[[int], None]]:
    """Progress bar on stderr that appears only on a terminal and only once the work has taken a while.

    Args:
        title: What is done.
        total: How much there is to do.
        delay_seconds: How long the work takes before the bar appears.

    Yields:
        A function to call now and then with how much is done.
    """
    with ExitStack() as stack:
        started = monotonic()
        update: Callable[[int], None] | None = None

        def show(done: int) -> None:
            nonlocal update
            if update is None and monotonic() - started > delay_seconds and sys.stderr.isatty():
                update = stack.enter_context(_progress(title, total))
            if update is not None:
                update(done)

        yield show


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)
