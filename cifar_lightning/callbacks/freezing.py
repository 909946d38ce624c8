"""Freezing while training: parts whose schedule has ended, and the trunk while the head alone is trained."""

import logging
import math
from collections.abc import Collection
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.optim.freeze import ended

log = logging.getLogger(__name__)

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""The modules that keep statistics of the images they have seen."""


class Freezing(Callback):
    """Freezes the parameters whose schedule has ended, from the start of the next epoch to the end of training.

    The optimizer's groups say which these are; see ``optim.freeze.end_early``. Without the gradients of its first
    layer's bias, the backward pass of the speedruns' network ends one layer earlier: 8 % of a step on a CPU.
    """

    def __init__(self) -> None:
        self._epoch_start = 0
        self._frozen: list[nn.Parameter] = []

    def progress(self, trainer: L.Trainer) -> float:
        """Share of all optimizer steps that were done at the start of this epoch, in [0, 1]."""
        return self._epoch_start / max(1, trainer.estimated_stepping_batches)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._freeze(trainer)  # a run resumed within an epoch has no start of it

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._epoch_start = trainer.global_step
        self._freeze(trainer)

    def _freeze(self, trainer: L.Trainer) -> None:
        for parameter in ended(trainer.optimizers[0].param_groups, self.progress(trainer)):
            if parameter.requires_grad:
                parameter.requires_grad_(False).grad = None
                self._frozen.append(parameter)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_()
        self._frozen.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"epoch_start": self._epoch_start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._epoch_start = state_dict["epoch_start"]


class TrunkFreezing(Callback):
    """Trains the head alone in the first steps, and the whole network from then on.

    Meanwhile the trunk gets no gradients, so that no optimizer moves it, and its batch norms are in evaluation mode. It
    depends on the number of steps done alone, so a resumed run needs no state for it. The optimizer is one that
    ``optim.freeze.with_trunk_apart`` builds.

    Args:
        share: Share of all optimizer steps in which the trunk is frozen, in (0, 1).
        head: Names of the network's parameters that are trained from the start; see ``models.head_of``.

    Source: Howard and Ruder 2018 (arXiv:1801.06146), who thaw one layer after another.
    """

    def __init__(self, share: float, head: Collection[str]) -> None:
        self._share = share
        self._head = frozenset(head)
        self._frozen: list[Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Not sooner: the optimizer takes those parameters that need gradients as it is built.
        assert isinstance(pl_module, ImageClassifier)
        if not self._is_early(trainer):
            return
        named = pl_module.net.named_parameters()
        self._frozen = [p for name, p in named if name not in self._head and p.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False).grad = None
        num_steps = trainer.estimated_stepping_batches
        num_frozen = math.ceil(self._share * num_steps)
        log.info("frozen    all but the head, for the first %s of %s steps", f"{num_frozen:,}", f"{num_steps:,}")
        self._set_norms(pl_module.net, training=False)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ImageClassifier)
        if self._frozen and not self._is_early(trainer):
            self._thaw(pl_module)
            log.info("thawed    the whole network is trained from step %s on", f"{trainer.global_step + 1:,}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        self._thaw(pl_module)

    def _is_early(self, trainer: L.Trainer) -> bool:
        # As the schedule counts: the steps done, of all steps.
        return trainer.global_step / max(1, trainer.estimated_stepping_batches) < self._share

    def _thaw(self, classifier: ImageClassifier) -> None:
        if self._frozen:
            for parameter in self._frozen:
                parameter.requires_grad_()
            self._frozen.clear()
            self._set_norms(classifier.net, training=True)

    def _set_norms(self, net: nn.Module, *, training: bool) -> None:
        for name, module in net.named_modules():
            if isinstance(module, NORMS) and f"{name}.running_mean" not in self._head:
                module.train(training)
