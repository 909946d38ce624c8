"""What happens to a rank at a step of a run: a callback that processes can import by its name."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from cifar_lightning import ranks
from cifar_lightning.errors import UserError


def _ranks() -> list[int]:
    """Processes of the ranks, where there is /proc: those that this one's parent has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == os.getppid():
                found.append(int(path.parent.name))
    return found


class Mishap(Callback):
    """Something that happens once, after a step, to one rank.

    Args:
        kind: What happens.
        rank: To whom.
        step: After how many steps.
        marker: A file that says that it has happened.
    """

    def __init__(self, *, kind: str, rank: int, step: int, marker: str) -> None:
        self.kind, self.rank, self.step, self.marker = kind, rank, step, Path(marker)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if (trainer.global_step, ranks.rank()) != (self.step, self.rank) or self.marker.exists():
            return
        self.marker.touch()
        if self.kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "stopped":
            os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(1)  # till the parent has told all
        elif self.kind == "all signalled":
            for pid in (*_ranks(), os.getppid()):
                os.kill(pid, signal.SIGUSR2)
            time.sleep(1)
        elif self.kind == "orphaned":
            os.kill(os.getppid(), signal.SIGKILL)
        elif self.kind == "diverged":
            with torch.no_grad():
                next(pl_module.parameters()).fill_(float("nan"))
        elif self.kind == "refused":
            raise UserError("data.batch_size: no such thing")
        elif self.kind == "broken":
            raise ValueError("no such thing\nat all")


class Compared(Callback):
    """Raises at the end of training if a rank's weights differ from those of another by a bit."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        weights = torch.cat([parameter.detach().flatten() for parameter in pl_module.parameters()])
        first, *others = ranks.gathered(weights)
        if not others or not all(torch.equal(first, other) for other in others):
            raise AssertionError("ranks have other weights")
