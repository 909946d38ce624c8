"""Images per second from a mapped file beside those in memory: a plain pass over an epoch, and steps of training.

The network is the tutorial's, with a first linear layer for the size of the images.

    python benchmarks/memory.py                                     # 4 GB of random pixels, three rounds
    python benchmarks/memory.py --gb 20 --sparse --contenders mapped   # more than this machine's memory

The file is written once, into a temporary folder, and the system's cache should hold it: with --sparse it holds zeros
and takes no room on the disk. Each contender runs in a process of its own, and its clock starts when the images are
there. Contenders take turns, and a ratio compares two figures of one round. The peak is the process's resident memory,
pages of the mapped file among it; the second peak is without them (RssAnon, looked at every 20 ms).
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from harness import in_process, spread
from rich.console import Console
from rich.table import Table
from torch import nn

from cifar_lightning import models
from cifar_lightning.data import Batches
from cifar_lightning.data.arrays import Arrays, to_arrays
from cifar_lightning.device import device_name, keeping_freed_memory, threads

CONTENDERS = ("in memory", "mapped")
NUM_CLASSES = 10


def write(file: Path, options: argparse.Namespace) -> None:
    """Write as many whole images as fit into the gigabytes that are asked for."""
    num_bytes = int(options.gb * 1e9) // (3 * options.size**2) * 3 * options.size**2
    with open(file, "wb") as stream:
        if options.sparse:
            stream.truncate(num_bytes)
            return
        block = np.random.default_rng(0).bytes(2**26)
        for start in range(0, num_bytes, len(block)):
            stream.write(block[: num_bytes - start])


def arrays(contender: str, file: Path, size: int) -> Arrays:
    """The images of the file, in ten classes."""
    shape = (file.stat().st_size // (3 * size**2), size, size, 3)
    pixels = np.memmap(file, np.uint8, "r", shape=shape) if contender == "mapped" else np.fromfile(file, np.uint8)
    targets = np.arange(len(pixels.reshape(shape))) % NUM_CLASSES
    return to_arrays(SimpleNamespace(data=pixels.reshape(shape), targets=targets, classes=list("abcdefghij")))


def images_per_second(batches: Batches, max_steps: int, net: nn.Module | None) -> float:
    """Images per second of an epoch, or of its first steps; of training where there is a network."""
    optimizer = None if net is None else torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    num_images, began = 0, time.perf_counter()
    for step, (images, targets) in enumerate(batches):
        if step == max_steps:
            break
        num_images += len(images)
        if net is not None and optimizer is not None:
            nn.functional.cross_entropy(net(images.float().div_(255)), targets).backward()
            optimizer.step()
            optimizer.zero_grad()
    return num_images / (time.perf_counter() - began)


def network(size: int) -> nn.Module:
    """The tutorial's, for images of this size."""
    net = models.build("tutorial", num_classes=NUM_CLASSES, in_channels=3)
    net.fc1 = nn.Linear(16 * (((size - 4) // 2 - 4) // 2) ** 2, 120)
    return net


def in_status(key: str) -> float:
    """GB in a line of this process's status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(f"{key}:"))


def run(contender: str, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of a contender, in this process."""
    found, done = [0.0], Event()

    def look() -> None:
        while not done.wait(0.02):
            found.append(in_status("RssAnon"))

    looking = Thread(target=look)
    looking.start()
    try:
        read = arrays(contender, options.file, options.size)
        index = torch.arange(len(read.targets))
        batches = Batches(read, index, batch_size=options.batch_size, seed=0)
        with keeping_freed_memory(torch.device("cpu")), threads(options.threads):
            figures = {
                "pass": images_per_second(batches, len(batches), None),
                "training": images_per_second(batches, options.steps, network(options.size)),
            }
    finally:
        done.set()
        looking.join()
    sizes = {"GB": options.file.stat().st_size / 1e9, "peak GB": in_status("VmHWM"), "without file": max(found)}
    return {"contender": contender, **figures, **sizes}


def measure(contender: str, options: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Figures of a contender in a fresh process."""
    given = [f"--{name}={getattr(options, name)}" for name in ("size", "batch_size", "steps")]
    given += [] if options.threads is None else [f"--threads={options.threads}"]
    return in_process(__file__, "--contender", contender, "--file", str(file), *given)


def table(rounds: list[dict[str, dict[str, Any]]], options: argparse.Namespace) -> Table:
    """Medians over the rounds, with the smallest and the largest; and ratios to what is in memory."""
    with threads(options.threads):
        device = device_name(torch.device("cpu"))
    title = f"{options.gb:g} GB, {options.size} pixels, batches of {options.batch_size}"
    shown = Table(title=f"{title}, {device}, torch {torch.__version__}, n = {len(rounds)}")
    shown.add_column("contender")
    for name in ("images/s, pass", "/ in memory", "images/s, training", "/ in memory", "peak GB", "without the file's"):
        shown.add_column(name, justify="right")
    for contender in options.contenders:
        runs = [by_name[contender] for by_name in rounds]
        cells = []
        for kind in ("pass", "training"):
            values = [figures[kind] for figures in runs]
            cells.append("{} ({})".format(*spread(values, ",.0f")))
            both = [(by_name[contender], by_name.get(CONTENDERS[0])) for by_name in rounds]
            ratios = [one[kind] / other[kind] for one, other in both if other is not None]
            cells.append("{} ({})".format(*spread(ratios)) if ratios else "")
        cells += [f"{max(figures[key] for figures in runs):.2f}" for key in ("peak GB", "without file")]
        shown.add_row(contender, *cells)
    return shown


def main() -> None:
    """Write the file, run the contenders in turn and print their table."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--gb", type=float, default=4)
    parser.add_argument("--size", type=int, default=64, help="height and width of the images, in pixels")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300, help="of training")
    parser.add_argument("--threads", type=int, help="of torch; its own number by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sparse", action="store_true", help="a file of zeros, which takes no room on the disk")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--folder", help="where the temporary folder is made")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(run(options.contender, options)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = Path(folder) / "pixels"
        write(file, options)
        rounds = []
        for number in range(options.rounds):
            in_turn = options.contenders[:: 1 if number % 2 == 0 else -1]
            rounds.append({contender: measure(contender, options, file) for contender in in_turn})
            print(*map(json.dumps, rounds[-1].values()), sep="\n", flush=True)
    Console(width=150).print(table(rounds, options))


if __name__ == "__main__":
    main()
