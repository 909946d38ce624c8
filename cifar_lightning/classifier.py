"""The LightningModule: normalisation, network, loss, metrics, optimizer. It knows no data set."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import lightning as L
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from cifar_lightning.checkpoint.random_states import default_generators, set_default_generators
from cifar_lightning.metrics import Evaluation, RunningMetrics, as_float, augmented_logits, evaluate
from cifar_lightning.optim.freeze import end_early
from cifar_lightning.optim.schedules import Schedule


class NonFiniteLoss(RuntimeError):
    """The loss has become NaN or infinite."""


Batch = tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, " b"]]


class ImageClassifier(L.LightningModule):
    """A network fed with raw pixels: normalisation is part of it, so that no user of a checkpoint can get it wrong.

    Args:
        net: ``images (N, C, H, W) float, normalised -> logits (N, K)``.
        mean: Mean of the pixels per channel, of values in [0, 1]; one number serves all channels.
        std: Standard deviation likewise; positive.
        optimizer: ``net -> Optimizer``; None for a classifier that is not trained.
        schedule: Progress in [0, 1] -> factor on the learning rate; None for a constant one.
        freeze: Parts of the network, and for each the first fraction of all steps in which it goes through the
            schedule; see ``optim.end_early``. Then its rate is 0, and from the next epoch to the end of training no
            gradients are computed for it.
        label_smoothing: Share of each target spread evenly over the classes, in [0, 1]; in the training loss only.

    Attributes:
        description: What checkpoints hold besides Lightning's own keys; see ``checkpoint.describe``.
        train_metrics: Sums over the training steps since they were last taken.
        tta: Level of test-time augmentation; see ``evaluation.augmented_logits``.
        evaluations: The last evaluation of each split; in ``judged_at`` the optimizer steps done by then, and in
            ``known_at`` what ``time.perf_counter`` said.
        augmented: The last evaluation of each split with test-time augmentation.
        is_training_restored: Whether training has come to its first step, with all that a checkpoint held taken over.

    Raises:
        ValueError: If an argument is out of its range.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        net: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None,
        schedule: Schedule | None = None,
        freeze: Mapping[str, float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(f"mean and std must have one number per channel each, got {list(mean)} and {list(std)}")
        if not all(value > 0 for value in std):
            raise ValueError(f"std must be positive, got {list(std)}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
        self.net = net
        self.optimizer = optimizer
        self.schedule = schedule
        self.freeze_after = dict(freeze or {})
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        # (pixel / 255 - mean) / std as one multiplication and one addition
        mean_, std_ = (torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1) for values in (mean, std))
        self.register_buffer("scale", (1 / (255 * std_)).float())
        self.register_buffer("shift", (-mean_ / std_).float())
        self.description: dict[str, Any] = {}
        self.train_metrics = RunningMetrics()
        self.tta = 0
        self.evaluations: dict[str, Evaluation] = {}
        self.augmented: dict[str, Evaluation] = {}
        self.judged_at: dict[str, int] = {}
        self.known_at: dict[str, float] = {}
        self._collected: list[tuple[Tensor, Tensor, Tensor]] = []
        self._resting: list[nn.Parameter] = []
        self._epoch_start = 0
        self._restored: dict[str, Any] | None = None
        self.is_training_restored = False

    def __setattr__(self, name: str, value: Any) -> None:
        # Lightning writes this one some forty times a step; nn.Module's own way, which looks for parameters first,
        # would make that 5 % of a tutorial step.
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def normalized(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Raw uint8 images as the network gets them."""
        return torch.addcmul(self.shift, images.to(self.scale.dtype), self.scale)

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits of raw uint8 images."""
        return self.net(self.normalized(images))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        logits = as_float(self(images))
        loss = self.loss(logits, targets)
        step = self.trainer.global_step
        self._watch(loss, step)
        self.train_metrics.update(loss, logits, targets, step=step)
        return loss

    def _watch(self, loss: Float[Tensor, ""], step: int) -> None:
        """Stop at a loss that is not finite; on a GPU ``check_finite`` does it, so that no step waits."""
        if loss.device.type == "cpu" and not math.isfinite(loss.item()):
            self._stop_at(step)

    def check_finite(self) -> None:
        """Raise NonFiniteLoss if a loss since ``train_metrics`` were last taken is not finite; waits for the device."""
        if (step := self.train_metrics.first_not_finite()) is not None:
            self._stop_at(step)

    def _stop_at(self, step: int) -> NoReturn:
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        raise NonFiniteLoss(
            f"the loss of step {step} (epoch {self.trainer.current_epoch}, both from 0) is not finite, at a rate of "
            f"{rate:g}: try a lower optimizer.lr, trainer.gradient_clip_val=1 or trainer.precision=32-true"
        )

    def build_optimizer(self) -> torch.optim.Optimizer:
        """A new optimizer of the network's parameters."""
        assert self.optimizer is not None, "this classifier was built to be judged, not trained"
        optimizer = self.optimizer(self.net)
        end_early(optimizer, self.net, self.freeze_after)
        return optimizer

    def configure_optimizers(self) -> Any:
        optimizer = self.build_optimizer()
        if self.trainer.gradient_clip_val:
            # Fused kernels could unscale fp16 gradients themselves, and Lightning then refuses to clip, in bf16 too.
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        if self.schedule is None and not self.freeze_after:
            return optimizer
        schedule, num_steps = self.schedule or (lambda progress: 1.0), max(1, self.trainer.estimated_stepping_batches)

        def factor_until(end: float) -> Callable[[int], float]:
            return lambda step: 0.0 if step >= end * num_steps else schedule(step / num_steps / end)

        def factor(step: int) -> float:
            return schedule(min(1.0, step / num_steps))

        groups = optimizer.param_groups
        factors = [factor_until(group["end_fraction"]) if "end_fraction" in group else factor for group in groups]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factors), "interval": "step"}}

    def on_train_start(self) -> None:
        if self._restored is not None:
            self._epoch_start = self._restored["epoch_start"]
            self.trainer.should_stop = self._restored["should_stop"]  # which fit() has set to False
            self.train_metrics.load_state_dict(self._restored["metrics"], self.device)
            set_default_generators(
                self._restored["generators"], self.device
            )  # last, since the callbacks before may have drawn
            self._restored = None
        self.is_training_restored = True
        self._rest_ended()  # a run resumed within an epoch has no start of it

    def on_train_epoch_start(self) -> None:
        self._epoch_start = self.trainer.global_step
        self._rest_ended()

    def _rest_ended(self) -> None:
        progress = self._epoch_start / max(1, self.trainer.estimated_stepping_batches)
        self._rest(self.ended(self.trainer.optimizers[0].param_groups, progress))

    @staticmethod
    def ended(groups: list[dict[str, Any]], progress: float) -> list[nn.Parameter]:
        """Parameters that rest after a share of all steps, and need no gradients any more.

        Without those of its first layer's bias, backward ends one layer earlier, 8 % of a speedrun step on a CPU.

        Args:
            groups: The optimizer's parameter groups.
            progress: Share of all steps done, in [0, 1].
        """
        over = [group for group in groups if progress >= group.get("end_fraction", math.inf)]
        return [parameter for group in over for parameter in group["params"]]

    def _rest(self, parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            parameter.requires_grad_(False).grad = None
        self._resting += parameters

    def on_train_end(self) -> None:
        for parameter in self._resting:
            parameter.requires_grad_()
        self._resting.clear()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._collect(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._collect(batch)

    def _collect(self, batch: Batch) -> None:
        images, targets = batch
        self._collected.append((*augmented_logits(self, images, level=self.tta), targets))

    def on_validation_epoch_end(self) -> None:
        self._judge("val")

    def on_test_epoch_end(self) -> None:
        self._judge("test")

    def _judge(self, split: str) -> None:
        """Judge all logits of a split at once, so that train.py and evaluate.py report the same exact counts."""
        logits, augmented, targets = zip(*self._collected, strict=True)
        self._collected.clear()
        if self.trainer.sanity_checking:
            return
        self.evaluations[split] = evaluate(torch.cat(logits), torch.cat(targets))
        self.augmented.pop(split, None)
        if self.tta:
            self.augmented[split] = evaluate(torch.cat(augmented), torch.cat(targets))
        self.known_at[split] = time.perf_counter()
        self.log_dict(self.scalars(split), logger=False)  # for callbacks; by itself it would log one step too early
        step = self.trainer.global_step
        if self.judged_at.get(split) != step:  # a resumed run may judge again what it had judged
            for logger in self.trainer.loggers:
                logger.log_metrics(self.scalars(split), step=step)
        self.judged_at[split] = step

    def scalars(self, split: str) -> dict[str, float]:
        """The last figures of a split: ``<split>/acc`` and so on, and ``<split>/acc_tta`` where views were averaged.

        Raises:
            KeyError: If the split has not been judged.
        """
        found = {f"{split}/{name}": value for name, value in self.evaluations[split].scalars().items()}
        if split in self.augmented:
            found |= {f"{split}/{name}_tta": value for name, value in self.augmented[split].scalars().items()}
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(self.description)
        checkpoint["training"] = {
            "epoch_start": self._epoch_start,
            "should_stop": self.trainer.should_stop,
            "judged_at": dict(self.judged_at),
            "metrics": self.train_metrics.state_dict(),
            "generators": default_generators(self.device),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._restored = checkpoint["training"]
        self.judged_at = dict(checkpoint["training"]["judged_at"])
