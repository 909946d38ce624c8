"""Time to read images in folders: torchvision's ImageFolder in a DataLoader, our first use, and our use of the cache.

Torchvision's loop runs with batches of 4, as in the 60-minute tutorial, and with larger ones, which it reads faster.

    python benchmarks/folder.py                    # 50,000 smooth images, three rounds
    python benchmarks/folder.py --root data --dataset torchvision.datasets.CIFAR10

The files are written once, as PNG, into a temporary folder, so all contenders find them in the system's file cache.
Each contender runs in a process of its own, and its clock starts after the imports. Contenders take turns, and a ratio
compares two times of one round.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import in_process, smooth_images, spread
from hydra.utils import get_class
from PIL import Image
from rich.console import Console
from rich.table import Table

from cifar_lightning.data.folder import ImageFolder
from cifar_lightning.data.pixels import CACHE_FOLDER
from cifar_lightning.device import device_name

TORCHVISION = {f"torchvision, batches of {size}": size for size in (4, 128, 500)}
CONTENDERS = (*TORCHVISION, "first use", "from the cache")
NUM_CLASSES = 10
SIZE = 32


def write(root: Path, options: argparse.Namespace) -> None:
    """Write the training images, and one test image of each class, as ImageFolder requires."""
    images, targets = smooth_images(options.images), [i % NUM_CLASSES for i in range(options.images)]
    if options.dataset is not None:
        dataset = options.dataset(root=options.root, train=True)
        images, targets = iter(dataset.data[: options.images]), dataset.targets[: options.images]
    for target in set(targets):
        for split in ("train", "test"):
            (root / split / f"class{target}").mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE)).save(root / "test" / f"class{target}" / "0.png")
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        Image.fromarray(image).save(root / "train" / f"class{target}" / f"{number:05}.png")


def torchvision_loop(root: Path, batch_size: int) -> int:
    """An epoch of the tutorial's loop, without a network."""
    from torch.utils.data import DataLoader
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder as TorchvisionFolder

    transform = T.Compose([T.ToTensor(), T.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
    dataset = TorchvisionFolder(root / "train", transform)
    loader = DataLoader(dataset, batch_size=batch_size, shuffle=True, num_workers=2)
    return sum(len(targets) for _, targets in loader)


def run(contender: str, root: Path) -> dict[str, Any]:
    """Figures of a contender, in this process."""
    if contender == "first use":
        shutil.rmtree(root / CACHE_FOLDER, ignore_errors=True)
    started = time.perf_counter()
    batch_size = TORCHVISION.get(contender)
    num_images = torchvision_loop(root, batch_size) if batch_size else len(ImageFolder(root).data)
    seconds = time.perf_counter() - started
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "contender": contender,
        "images": num_images,
        "seconds": seconds,
        "cpu_seconds": sum(usage.ru_utime + usage.ru_stime for usage in used),  # including the imports
        "peak_gib": used[0].ru_maxrss / 2**20,  # KiB on Linux
    }


def measure(contender: str, root: Path) -> dict[str, Any]:
    """Figures of a contender in a fresh process."""
    return in_process(__file__, "--contender", contender, "--root", str(root))


def table(rounds: list[dict[str, dict[str, Any]]]) -> Table:
    """Medians over the rounds. The last column is the ratio of a contender's seconds to those of our first use."""
    num_images = rounds[0]["first use"]["images"]
    device = device_name(torch.device("cpu"))
    shown = Table(title=f"{num_images:,} images, {device}, torch {torch.__version__}, n = {len(rounds)}")
    shown.add_column("contender")
    for name in ("s", "from ... to", "CPU s", "peak GiB", "this / first use"):
        shown.add_column(name, justify="right")
    for contender in CONTENDERS:
        runs = [by_name[contender] for by_name in rounds]
        seconds = [figures["seconds"] for figures in runs]
        ratio = median(by_name[contender]["seconds"] / by_name["first use"]["seconds"] for by_name in rounds)
        medians = [f"{median(figures[key] for figures in runs):.2f}" for key in ("cpu_seconds", "peak_gib")]
        shown.add_row(contender, *spread(seconds), *medians, f"{ratio:.2f}")
    return shown


def main() -> None:
    """Write the files, run the contenders in turn and print their table."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dataset", type=get_class, help="data set class whose training images are written")
    parser.add_argument("--root", default="data", help="folder that holds that data set")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(json.dumps(run(options.contender, Path(options.root))))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options)
        rounds = []
        for _ in range(options.rounds):  # the order matters: our first use writes the cache
            rounds.append({contender: measure(contender, Path(folder)) for contender in CONTENDERS})
            print(*map(json.dumps, rounds[-1].values()), sep="\n", flush=True)
    Console(width=120).print(table(rounds))


if __name__ == "__main__":
    main()
