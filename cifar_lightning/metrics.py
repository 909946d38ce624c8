"""What is counted while training."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor


class RunningMetrics:
    """Sums of loss and of correct predictions over training steps, without a host sync until they are read.

    A step only keeps its tensors; every ``_FOLD`` steps they are added up in one go. For a network as small as the
    tutorial's, reducing at each step would cost as much as a layer.
    """

    _FOLD = 64

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._sums: Tensor | None = None
        self._num_images = 0
        self._steps: list[int] = []
        self._is_finite: list[Tensor] = []

    def update(
        self, loss: Float[Tensor, ""], logits: Float[Tensor, "b k"], targets: Int64[Tensor, " b"], *, step: int
    ) -> None:
        """Take in a step: its mean loss, its logits, and what it is to be called where the loss is not finite."""
        self._pending.append((loss.detach(), logits.detach(), targets))
        self._steps.append(step)
        if len(self._pending) == self._FOLD:
            self._fold()

    def _fold(self) -> None:
        losses, logits, targets = zip(*self._pending, strict=True)
        self._pending.clear()
        sizes = [len(target) for target in targets]
        stacked = torch.stack(losses)
        # Full batches have one size: weigh the last, smaller one apart instead of copying sizes to the device.
        loss_sum = sizes[0] * stacked[:-1].sum() + sizes[-1] * stacked[-1]
        num_correct = (torch.cat(logits).argmax(1) == torch.cat(targets)).sum()
        sums = torch.stack([loss_sum.float(), num_correct.float()])
        self._sums = sums if self._sums is None else self._sums + sums
        self._num_images += sum(sizes)
        self._is_finite.append(stacked.isfinite())

    def take(self) -> tuple[int, float, int]:
        """Number of images, sum of their losses and number of correct ones since the last call; a device sync."""
        if self._pending:
            self._fold()
        loss_sum, num_correct = (0.0, 0.0) if self._sums is None else self._sums.tolist()
        taken = (self._num_images, loss_sum, round(num_correct))
        self._sums, self._num_images = None, 0
        self._steps.clear()
        self._is_finite.clear()
        return taken

    def first_not_finite(self) -> int | None:
        """The first step since the last call of ``take`` whose loss is not finite, if there is one; a device sync."""
        pending = [torch.stack([loss for loss, *_ in self._pending]).isfinite()] if self._pending else []
        is_finite = torch.cat([*self._is_finite, *pending]).tolist() if self._steps else []
        return None if all(is_finite) else self._steps[is_finite.index(False)]

    def state_dict(self) -> dict[str, Any]:
        """What has been taken in since the last call of ``take``, as it is: adding up early would round differently."""
        losses, logits, targets = zip(*self._pending, strict=True) if self._pending else ((), (), ())
        pending = [torch.stack(losses), torch.cat(logits), torch.cat(targets)] if self._pending else []
        sizes = [len(target) for target in targets]
        return {"pending": pending, "sizes": sizes, "sums": self._sums, "num_images": self._num_images}

    def load_state_dict(self, state_dict: dict[str, Any], device: torch.device) -> None:
        """Go on from a state, on a device."""
        self._sums = None if state_dict["sums"] is None else state_dict["sums"].to(device)
        self._num_images = state_dict["num_images"]
        self._pending, self._is_finite = [], []
        self._steps = [0] * len(state_dict["sizes"])  # finite, or they would not have been saved
        if state_dict["pending"]:
            losses, logits, targets = (tensor.to(device) for tensor in state_dict["pending"])
            sizes = state_dict["sizes"]
            self._pending = list(zip(losses.unbind(), logits.split(sizes), targets.split(sizes), strict=True))
