"""What safety costs: a training step with and without its watch, and a save of ResNet-18 with momentum.

    python benchmarks/safety.py

The watch over the loss and the checkpoint's hook are switched on and off every few steps within one run of the
tutorial's recipe, since a shared machine drifts more than they cost from one run to the next.
"""

import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from cifar_lightning.callbacks.finite import FiniteWatch
from cifar_lightning.callbacks.saving import RunCheckpoints
from cifar_lightning.checkpoint.durable_io import DurableIO
from cifar_lightning.commands.train import train
from cifar_lightning.config.schema import compose
from cifar_lightning.device import device_name
from cifar_lightning.models import build

STRETCH = 60
"""Steps between two switches."""

NUM_SAVES = 10


class Switch(Callback):
    """Turns the watch on and off and times each stretch of steps."""

    seconds: tuple[list[float], list[float]] = ([], [])
    _since = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % STRETCH:
            return
        now = time.perf_counter()
        is_on = batch_idx // STRETCH % 2
        if batch_idx >= STRETCH:
            self.seconds[not is_on].append(now - self._since)
        FiniteWatch.on_before_backward = _WATCH if is_on else lambda *args: None  # type: ignore[method-assign]
        RunCheckpoints.on_train_batch_end = _SAVE if is_on else lambda *args: None  # type: ignore[method-assign]
        self._since = time.perf_counter()


_WATCH, _SAVE = FiniteWatch.on_before_backward, RunCheckpoints.on_train_batch_end


def step_ratio() -> tuple[list[float], int]:
    """Quartiles of the time of a stretch with the watch by that of its neighbour without, and the number of pairs."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["data=synthetic", "trainer.accelerator=cpu", f"output_dir={folder}/run", "logger=none"]
        train(compose(*overrides, "trainer.max_epochs=8", f"+callbacks.switch._target_={__name__}.Switch"))
    off, on = Switch.seconds
    ratios = [with_it / without for without, with_it in zip(off, on, strict=False)]
    return quantiles(ratios, n=4), len(ratios)


def save_seconds() -> tuple[list[float], int]:
    """Seconds of each save of ResNet-18 with momentum, and the file's bytes."""
    net = build("resnet18", num_classes=10, in_channels=3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.zeros(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    contents = {"global_step": 1, "state_dict": net.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    seconds = []
    with tempfile.TemporaryDirectory(dir=".") as folder:  # of the disk that runs are saved on
        path = Path(folder) / "last.ckpt"
        for _ in range(NUM_SAVES):
            started = time.perf_counter()
            DurableIO().save_checkpoint(contents, path)
            seconds.append(time.perf_counter() - started)
        return seconds, path.stat().st_size


if __name__ == "__main__":
    (low, middle, high), num_pairs = step_ratio()
    seconds, num_bytes = save_seconds()
    print(f"{device_name(torch.device('cpu'))}, torch {torch.__version__}")
    print(
        f"tutorial steps with their watch by those without: median {middle:.3f}, quartiles {low:.3f} to {high:.3f} "
        f"(n = {num_pairs} pairs of neighbouring stretches of {STRETCH} steps)"
    )
    print(
        f"save of ResNet-18 with momentum, {num_bytes / 1e6:.0f} MB: median {median(seconds):.3f} s, "
        f"{min(seconds):.3f} to {max(seconds):.3f} (n = {len(seconds)})"
    )
