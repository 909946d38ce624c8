"""What the benchmarks share: options, configs and data, processes of their own, and the figures of a comparison."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from hydra.utils import get_class
from PIL import Image
from torch import Tensor

from cifar_lightning.config.resolve import COMPILE_MODES
from cifar_lightning.data.arrays import to_arrays

ROOT = Path(__file__).resolve().parents[1]

Options = argparse.Namespace
Figures = dict[str, Any]


def arguments() -> argparse.ArgumentParser:
    """Options that all contenders share."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--dataset", type=get_class, default="torchvision.datasets.CIFAR10", help="class of the data set"
    )
    parser.add_argument("--root", default="data", help="folder of the data, which must be there")
    parser.add_argument("--epochs", type=int, help="the recipe's own number by default")
    parser.add_argument("--steps", type=int, default=20, help="of ResNet-18")
    parser.add_argument("--accelerator", choices=("cpu", "gpu"), default="cpu", help="of the speedruns")
    parser.add_argument("--compile", choices=("false", *COMPILE_MODES), default="false", help="of the speedruns")
    return parser


def compose(options: Options, *overrides: str) -> Any:
    """The config of train.py with these overrides, over the data of the options."""
    import cifar_lightning.config.schema as schema

    target = f"{options.dataset.__module__}.{options.dataset.__qualname__}"
    given = [
        f"data.root={options.root}",
        f"data.dataset._target_={target}",
        f"trainer.accelerator={options.accelerator}",
    ]
    return schema.compose(*given, *overrides)


def epochs(options: Options) -> list[str]:
    """The override of the number of epochs, if one was given."""
    return [] if options.epochs is None else [f"trainer.max_epochs={options.epochs}"]


def tensors(options: Options, *, train: bool) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and targets of a split."""
    arrays = to_arrays(options.dataset(root=options.root, train=train))
    return arrays.images, arrays.targets


def figures(num_steps: int, batch_size: int, train_seconds: float, seconds: float, acc: float | None) -> Figures:
    """What each contender reports."""
    return {
        "ms_per_step": 1000 * train_seconds / num_steps,
        "images_per_second": num_steps * batch_size / train_seconds,
        "train_seconds": train_seconds,
        "seconds": seconds,
        "acc": acc,
    }


def in_process(script: str | Path, *options: str) -> Any:
    """The figures that a script prints as JSON in its last line, from a process of its own."""
    command = [sys.executable, "-W", "ignore", str(script), *options]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def spread(values: Sequence[float], form: str = ".2f") -> tuple[str, str]:
    """The median of values, and the smallest and the largest."""
    return format(median(values), form), f"{min(values):{form}} ... {max(values):{form}}"


def smooth_images(
    num_images: int, *, size: tuple[int, int] = (32, 32), blots: tuple[int, int] = (5, 5)
) -> Iterator[np.ndarray]:
    """Images of soft blots with some noise, which PNG and JPEG compress about as well as photographs.

    Args:
        num_images: How many.
        size: Width and height, in pixels.
        blots: Number of blots in a row and in a column.

    Yields:
        uint8 arrays (height, width, 3).
    """
    rng = np.random.default_rng(0)
    for _ in range(num_images):
        small = Image.fromarray(rng.integers(0, 256, (blots[1], blots[0], 3), dtype=np.uint8))
        soft = np.asarray(small.resize(size, Image.Resampling.BICUBIC), np.float32)
        yield (soft + rng.normal(0, 6, soft.shape)).clip(0, 255).astype(np.uint8)


def quick_checkpoint(folder: Path) -> Path:
    """A checkpoint of the tutorial's network after a few steps: no speed depends on its weights."""
    options = ["data=synthetic", "trainer.limit_train_batches=5", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    command = [sys.executable, str(ROOT / "train.py"), *options, "callbacks=none", "logger=none"]
    subprocess.run([*command, f"output_dir={folder / 'run'}"], check=True, stdout=subprocess.DEVNULL)
    return folder / "run" / "checkpoints" / "last.ckpt"
