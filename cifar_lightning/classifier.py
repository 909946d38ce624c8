"""The LightningModule: normalisation, network, loss, optimizer hook and evaluation. It knows no data set."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from cifar_lightning import ranks
from cifar_lightning.calibration import MIN_IMAGES, fit_temperature
from cifar_lightning.metrics import Evaluation, RunningMetrics, as_float, evaluate
from cifar_lightning.optim.schedules import Schedule, factors
from cifar_lightning.tta import augmented_logits

Batch = tuple[UInt8[Tensor, "b c h w"], Int64[Tensor, " b"]]


class ImageClassifier(L.LightningModule):
    """A network fed with raw pixels: normalisation is part of it, so that no user of a checkpoint can get it wrong.

    Args:
        net: ``images (N, C, H, W) float, normalised -> logits (N, K)``.
        mean: Mean of the pixels per channel, of values in [0, 1]; one number serves all channels.
        std: Standard deviation likewise; positive.
        optimizer: ``net -> Optimizer``; None for a classifier that is not trained.
        schedule: Progress in [0, 1] -> factor on the learning rate; None for a constant one.
        label_smoothing: Share of each target spread evenly over the classes, in [0, 1]; in the training loss only.
        class_weights: Weight of each class in the training loss, at least 0; None weighs all alike.

    Attributes:
        description: What every checkpoint holds besides Lightning's own keys; see ``checkpoint.format.description``.
        train_metrics: Sums over the training steps since they were last taken.
        tta: Level of test-time augmentation; see ``tta.augmented_logits``.
        evaluations: The last evaluation of each split.
        augmented: The last evaluation of each split with test-time augmentation.
        temperature: What logits are to be divided by for calibrated probabilities; None where it is not known. The
            logits themselves, and the metrics, are without it. A classifier that is trained has the one that its last
            validation gave, until the next training step. It serves augmented logits as well: of a speedrun on
            CIFAR-10, the calibration error at ``tta=2`` was 0.006 with the temperature of the plain logits, and 0.012
            with one of the augmented logits.

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
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(f"mean and std must have one number per channel each, got {list(mean)} and {list(std)}")
        if not all(value > 0 for value in std):
            raise ValueError(f"std must be positive, got {list(std)}")
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
        if class_weights is not None and not all(weight >= 0 for weight in class_weights):
            raise ValueError(f"class_weights must be at least 0, got {list(class_weights)}")
        self.net = net
        self.optimizer = optimizer
        self.schedule = schedule
        self.label_smoothing = label_smoothing
        # Neither a parameter nor a buffer: it is counted from the data, and in float32 as the logits are.
        self._class_weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        # (pixel / 255 - mean) / std as one multiplication and one addition
        mean_, std_ = (torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1) for values in (mean, std))
        self.register_buffer("scale", (1 / (255 * std_)).float())
        self.register_buffer("shift", (-mean_ / std_).float())
        self.description: Mapping[str, Any] = {}
        self.train_metrics = RunningMetrics()
        self.tta = 0
        self.evaluations: dict[str, Evaluation] = {}
        self.augmented: dict[str, Evaluation] = {}
        self.temperature: float | None = None
        self._num_batches = 0
        self._collected: list[tuple[int, Tensor, Tensor, Tensor]] = []

    def normalized(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Raw uint8 images as the network gets them."""
        return torch.addcmul(self.shift, images.to(self.scale.dtype), self.scale)

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits of raw uint8 images."""
        return self.net(self.normalized(images))

    def training_step(self, batch: Batch | ranks.Shard, batch_idx: int) -> Tensor:
        if self.temperature is not None:
            self.temperature = None  # which was that of the weights as they were
        images, targets = batch[:2]
        logits = as_float(self(images))
        loss = self._loss(logits, targets)
        if len(batch) == 2:
            self.train_metrics.update(loss, logits, targets, step=self.trainer.global_step)
            return loss
        _, _, whole, num_own = batch
        share = self._share(targets, whole) if num_own else 0.0
        if num_own:  # so that all ranks' losses, times their images, add up to that of the batch, times its images
            summand = loss * (share * (len(whole) / num_own))
            self.train_metrics.update(summand, logits, targets, step=self.trainer.global_step)
        return loss * (share * ranks.world_size())  # whose gradient is averaged over the ranks

    def _share(self, targets: Int64[Tensor, " s"], whole: Int64[Tensor, " b"]) -> Tensor | float:
        """Share that a rank's targets have in the mean loss of the whole batch, in [0, 1]."""
        if self._class_weights is None:
            return len(targets) / len(whole)
        return self._class_weights[targets].sum() / self._class_weights[whole].sum()

    def _loss(self, logits: Float[Tensor, "b k"], targets: Int64[Tensor, " b"]) -> Float[Tensor, ""]:
        if self._class_weights is not None and self._class_weights.device != logits.device:
            self._class_weights = self._class_weights.to(logits.device)
        return F.cross_entropy(logits, targets, self._class_weights, label_smoothing=self.label_smoothing)

    def configure_optimizers(self) -> Any:
        assert self.optimizer is not None, "this classifier was built to be evaluated, not trained"
        optimizer = self.optimizer(self.net)
        if self.schedule is None:
            return optimizer
        num_steps = max(1, self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, factors(optimizer.param_groups, self.schedule, num_steps=num_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # in the module's hook, as files of weights alone ask no callback
        checkpoint.update(self.description, temperature=self.temperature)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._collect(batch, batch_idx)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._collect(batch, batch_idx)

    def _collect(self, batch: Batch, batch_idx: int) -> None:
        images, targets = batch
        self._num_batches = batch_idx + 1
        if len(targets):  # else it is another rank's
            self._collected.append((batch_idx, *augmented_logits(self, images, level=self.tta), targets))

    def on_validation_epoch_end(self) -> None:
        self._evaluate("val")

    def on_test_epoch_end(self) -> None:
        self._evaluate("test")

    def _evaluate(self, split: str) -> None:
        """Evaluate all logits of a split at once, so that train.py and evaluate.py report the same exact counts."""
        logits, augmented, targets = self._of_all_ranks()
        if self.trainer.sanity_checking:
            return
        plain, all_targets = torch.cat(logits), torch.cat(targets)
        self.evaluations[split] = evaluate(plain, all_targets)
        self.augmented.pop(split, None)
        if self.tta:
            self.augmented[split] = evaluate(torch.cat(augmented), all_targets)
        if split == "val" and self.optimizer is not None:  # one that is only evaluated keeps its own
            can_be_fitted = len(plain) >= MIN_IMAGES and bool(plain.isfinite().all())
            self.temperature = fit_temperature(plain, all_targets) if can_be_fitted else None
        # For callbacks such as EarlyStopping. The loggers get them from TrainingCurves: Lightning itself would log them
        # one step too early.
        self.log_dict(self.scalars(split), logger=False)

    def _of_all_ranks(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Logits, augmented logits and targets of all batches of an evaluation, in their order."""
        collected, self._collected = self._collected, []
        if ranks.world_size() > 1:
            on_cpu = [(number, one.cpu(), other.cpu(), targets.cpu()) for number, one, other, targets in collected]
            collected = sorted((part for parts in ranks.gathered(on_cpu) for part in parts), key=lambda part: part[0])
        numbers, logits, augmented, targets = zip(*collected, strict=True)
        if numbers != tuple(range(self._num_batches)):
            raise RuntimeError(f"{self._num_batches} batches were to be evaluated, got those of number {numbers}")
        return logits, augmented, targets

    def scalars(self, split: str) -> dict[str, float]:
        """The last figures of a split: ``<split>/acc`` and so on, and ``<split>/acc_tta`` with test-time augmentation.

        Raises:
            KeyError: If the split has not been evaluated.
        """
        found = {f"{split}/{name}": value for name, value in self.evaluations[split].scalars().items()}
        if split in self.augmented:
            found |= {f"{split}/{name}_tta": value for name, value in self.augmented[split].scalars().items()}
        return found
