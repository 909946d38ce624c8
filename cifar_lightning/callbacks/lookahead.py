"""Lookahead: weights and batch-norm statistics move to their running average every few steps."""

import math
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn


class Lookahead(Callback):
    """Every few steps, set the weights to their running average, whose memory grows during training.

    The average ("slow weights") is updated every ``every`` steps, and training continues from it:
    slow = a * slow + (1 - a) * weights; weights = slow. The share a = decay**every * progress**power grows with the
    progress through all steps, so that the average soon forgets early weights. After the last planned step the weights
    are the average. It covers all parameters and all floating-point buffers, such as batch norm's statistics.

    Args:
        every: Optimizer steps between two updates, at least 1.
        decay: Share of the average that a step keeps at the end of training, in [0, 1).
        power: Exponent of the progress, at least 0; with 0 the share is ``decay**every`` from the first step on.

    Raises:
        ValueError: If an argument is out of its range.
        MisconfigurationException: At the start of training, if it has no planned end.

    Source: Zhang et al. 2019 (arXiv:1907.08610); tysam-code/hlb-CIFAR10 for the growing share; Jordan 2024
    (arXiv:2404.00498) for the constants.
    """

    def __init__(self, *, every: int = 5, decay: float = 0.95, power: float = 3.0) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        if power < 0:
            raise ValueError(f"power must be at least 0, got {power}")
        self.every = every
        self.decay = decay
        self.power = power
        self._slow: list[Tensor] = []
        self._restored: list[Tensor] | None = None
        self._num_steps = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if math.isinf(trainer.estimated_stepping_batches):
            raise MisconfigurationException(
                "Lookahead needs a planned last step; set trainer.max_epochs or trainer.max_steps"
            )
        fast = _averaged(pl_module)
        self._slow = [tensor.clone() for tensor in fast]
        if self._restored is not None:
            if [tensor.shape for tensor in self._restored] != [tensor.shape for tensor in self._slow]:
                raise MisconfigurationException("the checkpoint's Lookahead average does not fit the network")
            torch._foreach_copy_(self._slow, self._restored)
            self._restored = None
        self._num_steps = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        num_steps, all_steps = trainer.global_step, int(trainer.estimated_stepping_batches)
        if num_steps == self._num_steps:  # no optimizer step: gradients are still accumulated
            return
        self._num_steps = num_steps
        fast = _averaged(pl_module)
        if num_steps % self.every == 0:
            share = self.decay**self.every * (num_steps / all_steps) ** self.power
            torch._foreach_lerp_(self._slow, fast, 1 - share)
        if num_steps % self.every == 0 or num_steps == all_steps:
            torch._foreach_copy_(fast, self._slow)

    def state_dict(self) -> dict[str, Any]:
        return {"slow": self._slow}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict["slow"]


def _averaged(module: nn.Module) -> list[Tensor]:
    return [value for value in module.state_dict().values() if value.is_floating_point()]
