"""Nothing in a speedrun's steps makes the host wait for the device, from the gather of a batch to the optimizer."""

from contextlib import ExitStack
from typing import Any

import lightning as L
import pytest
from conftest import no_synchronizing
from lightning.pytorch.callbacks import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from cifar_lightning.callbacks.finite import FiniteWatch
from cifar_lightning.commands.train import train

# What reads values: all of them wait for a GPU.
READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::unique_dim")


class NoReads(TorchDispatchMode):
    """On a CPU, where nothing can wait, in place of CUDA's debug mode: refuses the operations that would."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith(READS):
            raise RuntimeError(f"called a synchronizing operation: {func.name()}")
        return func(*args, **kwargs or {})


class NoSync(Callback):
    """From an epoch's second step until its last one has ended, whatever waits for the device raises."""

    entered = 0

    def __init__(self) -> None:
        self.modes = ExitStack()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 1:
            NoSync.entered += 1
            self.modes.enter_context(no_synchronizing() if pl_module.device.type == "cuda" else NoReads())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            self.modes.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.modes.close()


class Reads(Callback):
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        float(next(pl_module.parameters()).sum())


def small_run(compose: Any, tiny_root: Any, experiment: str, accelerator: str, *overrides: str) -> Any:
    return compose(
        f"experiment={experiment}",
        f"data.root={tiny_root}",
        "data.dataset._target_=conftest.TinyCIFAR10",
        f"trainer.accelerator={accelerator}",
        "trainer.max_epochs=2",
        "data.batch_size=16",
        "model.widths=[8,8,8]",
        "logger=none",
        "checkpoint.every_epoch=false",  # which on a GPU is written beside the steps
        "+callbacks.no_sync._target_=test_sync.NoSync",
        *overrides,
    )


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("experiment", ["speedrun", "speedrun_gpu", "speedrun96"])
def test_steps_do_not_wait_for_the_device(experiment, accelerator, compose, tiny_root, monkeypatch):
    monkeypatch.setattr(NoSync, "entered", 0)
    monkeypatch.setattr(FiniteWatch, "on_before_backward", lambda *_: None)  # which does nothing on a GPU
    metrics = train(small_run(compose, tiny_root, experiment, accelerator))
    assert metrics["steps"] == 8
    assert NoSync.entered == 2


def test_a_step_that_waits_would_be_noticed(compose, tiny_root, monkeypatch):
    monkeypatch.setattr(FiniteWatch, "on_before_backward", lambda *_: None)
    cfg = small_run(compose, tiny_root, "speedrun", "cpu", "+callbacks.reads._target_=test_sync.Reads")
    with pytest.raises(RuntimeError, match="called a synchronizing operation: aten::_local_scalar_dense"):
        train(cfg)
