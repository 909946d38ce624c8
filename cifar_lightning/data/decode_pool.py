"""Many image files to pixels: in this process, or in several that run ``decoding``."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from time import monotonic
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cifar_lightning.data import decode as decoding
from cifar_lightning.data.decode import Problems, decode

NUM_FILES_WORTH_PROCESSES = 2_000

NUM_BYTES_WORTH_PROCESSES = 20_000_000

FILES_PER_TURN = 40  # as many small images as fit into a core's cache

BYTES_PER_TURN = 4_000_000  # of pixels


class ProcessLost(Exception):
    """A process that decodes was ended from outside, as where memory is scarce: no fault of the images."""


Write = Callable[[memoryview, int], None]
"""Called with some of the pixels and the place of their first byte among all."""


def nowhere(pixels: memoryview, start: int) -> None:
    """A ``Write`` that does nothing."""


def decode_all(
    paths: Sequence[str], pixels: memoryview, *, image_size: int, write: Write = nowhere
) -> tuple[list[str], Problems]:
    """Decode files into one buffer, one after the other or for many in as many processes as there are cores.

    Args:
        paths: The files.
        pixels: Where their pixels go: bytes, ``3 * image_size**2`` of each file.
        image_size: Height and width, in pixels.
        write: Gets all pixels too, as they come, from several threads.

    Returns:
        The files' stamps, and what is wrong with them.

    Raises:
        ProcessLost: If a process that decodes is ended from outside.
    """
    target = _Target(pixels, 3 * image_size * image_size, [""] * len(paths), {}, [], write)
    turns = _turns(len(paths), image_size)
    num_processes = min(num_cores(), len(turns))
    with late_bar("reading images", len(paths)) as show:
        if num_processes > 1 and _is_much(paths):
            _in_processes(paths, target, image_size, turns, num_processes, show)
        else:
            _here(paths, target, image_size, turns, show)
    return target.stamps, target.problems


class _Target(NamedTuple):
    """Where what comes of the files goes."""

    pixels: memoryview
    bytes_per_image: int
    stamps: list[str]
    problems: Problems
    done: list[int]
    """Numbers of files, to be added up."""
    write: Write

    def pixels_of(self, turn: range) -> memoryview:
        return self.pixels[turn.start * self.bytes_per_image : turn.stop * self.bytes_per_image]

    def take(self, turn: range, stamps: list[str], problems: Problems) -> None:
        self.stamps[turn.start : turn.stop] = stamps
        self.problems.update({turn[place]: problem for place, problem in problems.items()})
        self.done.append(len(turn))
        self.write(self.pixels_of(turn), turn.start * self.bytes_per_image)


def _turns(num_files: int, image_size: int) -> list[range]:
    """Files that are decoded in one go."""
    size = max(1, min(FILES_PER_TURN, BYTES_PER_TURN // (3 * image_size * image_size)))
    return [range(start, min(start + size, num_files)) for start in range(0, num_files, size)]


def _is_much(paths: Sequence[str]) -> bool:
    return len(paths) >= NUM_FILES_WORTH_PROCESSES or sum(map(_num_bytes, paths)) >= NUM_BYTES_WORTH_PROCESSES


def _num_bytes(path: str) -> int:
    with suppress(OSError):
        return os.path.getsize(path)
    return 0


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _here(
    paths: Sequence[str], target: _Target, image_size: int, turns: Sequence[range], show: Callable[[int], None]
) -> None:
    for turn in turns:
        target.pixels_of(turn)[:], stamps, problems = decode(paths[turn.start : turn.stop], image_size)
        target.take(turn, stamps, problems)
        show(turn.stop)


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
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


def _in_processes(
    paths: Sequence[str],
    target: _Target,
    image_size: int,
    turns: Sequence[range],
    num_processes: int,
    show: Callable[[int], None],
) -> None:
    def receive(number: int) -> None:
        own = turns[number::num_processes]  # so that a folder of larger images is shared by all
        request = json.dumps([image_size, [paths[turn.start : turn.stop] for turn in own]]).encode() + b"\n"
        _receive(processes[number], request, own, target)

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
            show(sum(target.done))


def _start() -> "subprocess.Popen[bytes]":
    # -P: its folder holds modules that are not to be found by their bare names. A process group of its own, as a
    # terminal sends Ctrl-C to all processes of one, and only this process is to answer it.
    command = [sys.executable, "-P", "-W", "ignore", decoding.__file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)


def _close(process: "subprocess.Popen[bytes]") -> None:
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):
            pipe.close()


def _receive(process: "subprocess.Popen[bytes]", request: bytes, turns: Sequence[range], target: _Target) -> None:
    assert process.stdin is not None
    assert isinstance(process.stdout, io.BufferedReader)
    with suppress(BrokenPipeError):  # it has gone; the next lines say so
        process.stdin.write(request)
        process.stdin.close()
    for turn in turns:
        wanted = target.pixels_of(turn)
        about = process.stdout.readline() if process.stdout.readinto(wanted) == len(wanted) else b""
        if not about:
            raise ProcessLost(f"a process that decoded images has ended with exit code {process.wait()}")
        stamps, problems = json.loads(about)
        target.take(turn, stamps, dict(problems))
