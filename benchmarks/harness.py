"""What all contenders share: their options, configs and data, and the figures they are compared by."""

import argparse
from typing import Any

from hydra.utils import get_class
from torch import Tensor

from cifar_lightning.config.resolve import COMPILE_MODES
from cifar_lightning.data.arrays import to_arrays

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
