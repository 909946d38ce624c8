"""Time the speedrun's 3x3 convolutions, directly and in the Fourier domain: forward and backward in bf16 on this CPU.

    python benchmarks/convolutions.py --batch_size 2000

The two methods take turns, and times are medians over the rounds. Errors are those of the outputs, relative to fp32.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cifar_lightning.device import device_name, keeping_freed_memory
from cifar_lightning.models.fourier import fourier_conv2d

# Channels in and out, height in and out, for images of 32x32 and of 24x24. The first convolution is not here: it has
# only 24 input channels, so the network computes it directly.
LAYERS = [
    *((64, 64, 15, 15), (64, 256, 15, 14), (256, 256, 7, 7), (256, 256, 7, 6), (256, 256, 3, 3)),
    *((64, 64, 11, 11), (64, 256, 11, 10), (256, 256, 5, 5), (256, 256, 5, 4), (256, 256, 2, 2)),
]


WARM_UP = 6  # rounds until the process has and keeps all the memory it needs


def direct_conv2d(features: Tensor, filters: Tensor, size: tuple[int, int]) -> Tensor:
    """Convolve as ``ConvGroup`` does: without the last row and column if pooling drops them."""
    if size == features.shape[2:]:
        return F.conv2d(features, filters, padding=1)
    return F.conv2d(F.pad(features, (1, 0, 1, 0)), filters)


def seconds_of(convolve: Callable[..., Tensor], features: Tensor, filters: Tensor, upstream: Tensor) -> float:
    """Measure the seconds of forward and backward."""
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = convolve(features, filters, upstream.shape[2:])
    torch.autograd.grad(outputs, (features, filters), upstream)
    return time.perf_counter() - started


def main() -> None:
    """Print a table with one line per layer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch_size", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with keeping_freed_memory(torch.device("cpu")):
        Console(width=120).print(table(options))


def table(options: argparse.Namespace) -> Table:
    """Times and errors of each layer."""
    torch.manual_seed(0)
    shown = Table(title=f"{device_name(torch.device('cpu'))}, torch {torch.__version__}, {options.batch_size} images")
    for name in ("channels", "pixels", "direct, ms", "Fourier, ms", "Fourier / direct", "error", "Fourier's"):
        shown.add_column(name, justify="right")
    for channels, width, size, kept in LAYERS:
        features = torch.randn(options.batch_size, channels, size, size).bfloat16()
        features = features.to(memory_format=torch.channels_last).requires_grad_()
        filters = torch.randn(width, channels, 3, 3) / (9 * channels) ** 0.5
        filters = filters.to(memory_format=torch.channels_last).requires_grad_()
        exact = direct_conv2d(features.detach().float(), filters.detach(), (kept, kept))
        upstream = torch.randn_like(exact).bfloat16()
        ways = (direct_conv2d, fourier_conv2d)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            errors = [((way(features, filters, (kept, kept)) - exact).std() / exact.std()).item() for way in ways]
        rounds = [
            [seconds_of(way, features, filters, upstream) for way in ways] for _ in range(WARM_UP + options.rounds)
        ][WARM_UP:]
        direct, fourier = (1000 * median(way) for way in zip(*rounds, strict=True))
        ratio = median(of_fourier / of_direct for of_direct, of_fourier in rounds)
        times = (f"{direct:.0f}", f"{fourier:.0f}", f"{ratio:.2f}")
        shown.add_row(f"{channels} to {width}", f"{size} to {kept}", *times, *(f"{error:.4f}" for error in errors))
    return shown


if __name__ == "__main__":
    main()
