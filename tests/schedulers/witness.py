"""A callback that tells, from the process of a job, where the job runs; and holds it there."""

import json
import os
import time
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from cifar_lightning.runs.signals import signals


class Witness(Callback):
    """Writes a file for its process, and waits until there are some.

    Args:
        folder: Of the files. While there is one called ``hold`` in it, a run is held after its second step.
        num: How many to wait for; 60 seconds at most.
    """

    def __init__(self, folder: str, num: int) -> None:
        self.folder, self.num = Path(folder), num

    def on_train_start(self, trainer, classifier):
        own = {
            "pid": os.getpid(),
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "threads": torch.get_num_threads(),
            "niceness": os.nice(0),
        }
        path = self.folder / f"{os.getpid()}.json"
        path.with_suffix(".tmp").write_text(json.dumps(own))
        path.with_suffix(".tmp").rename(path)
        end = time.monotonic() + 60
        while len(seen(self.folder)) < self.num and time.monotonic() < end:
            time.sleep(0.05)

    def on_train_batch_end(self, trainer, classifier, outputs, batch, batch_idx):
        while trainer.global_step > 1 and (self.folder / "hold").exists() and signals.requested is None:
            time.sleep(0.05)


def seen(folder: Path) -> list[dict]:
    """What the processes of jobs have told."""
    return [json.loads(path.read_text()) for path in folder.glob("*.json")]
