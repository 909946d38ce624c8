"""Pictures into TensorBoard."""

from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from cifar_lightning import ranks
from cifar_lightning.calibration import calibrated
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.data import ImageDataModule, spread
from cifar_lightning.report.figures import (
    MAX_GRID,
    confusion_matrix,
    image_grid,
    only_for_show,
    prediction_grid,
    to_pixels,
)


class Pictures(Callback):
    """Pictures into TensorBoard: training images at the start, predictions and a confusion matrix after the test.

    A picture that cannot be drawn is a warning. Those of the test are drawn by ``draw_test``, which a command calls
    once the numbers are on the disk.

    Args:
        num_images: Images per grid, in [1, 96].

    Raises:
        ValueError: If ``num_images`` is out of its range.
    """

    def __init__(self, *, num_images: int = 32) -> None:
        if not 1 <= num_images <= MAX_GRID:
            raise ValueError(f"num_images must be in [1, {MAX_GRID}], got {num_images}")
        self.num_images = num_images

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not _writers(trainer) or trainer.global_step:  # which a resumed run has had
            return
        with only_for_show("train/images"):
            data, batches = _data(trainer), trainer.train_dataloader
            if ranks.world_size() > 1:  # that is a loader of shards
                batches = data.train_batches(pl_module.device, shuffle=not trainer.overfit_batches)  # type: ignore[attr-defined]
            assert batches is not None
            first = islice(batches, -(-self.num_images // data.batch_size))
            images, targets = (torch.cat(parts)[: self.num_images].cpu() for parts in zip(*first, strict=True))
            heading = "Training images of the first epoch, as the network sees them"
            figure = image_grid(images, [data.classes[target] for target in targets.tolist()], heading=heading)
            _add_figure(trainer, "train/images", figure)

    def draw_test(self, trainer: L.Trainer, classifier: ImageClassifier) -> None:
        """Draw predictions and the confusion matrix of the last test; nothing where there was none."""
        if not _writers(trainer) or "test" not in classifier.evaluations:
            return
        data, evaluation = _data(trainer), classifier.evaluations["test"]
        with only_for_show("test/predictions"):
            chosen, temperature = spread(evaluation.num_images, self.num_images), classifier.temperature
            grid = prediction_grid(
                data.arrays("test").gather(data.index["test"][chosen]),
                data.targets("test")[chosen],
                evaluation.preds[chosen],
                data.classes,
                confidence=calibrated(evaluation.logits[chosen], temperature).softmax(1).amax(1),
                heading="Confidences are uncalibrated" if temperature is None else "Confidences are calibrated",
            )
            _add_figure(trainer, "test/predictions", grid)
        with only_for_show("test/confusion"):
            _add_figure(trainer, "test/confusion", confusion_matrix(evaluation.confusion, data.classes))


def _data(trainer: L.Trainer) -> ImageDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, ImageDataModule)
    return data


def _writers(trainer: L.Trainer) -> list[Logger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _add_figure(trainer: L.Trainer, tag: str, figure: Any) -> None:
    """Write a figure as PNG; ``add_figure`` would go through pyplot, which keeps figures and picks a window system."""
    for logger in _writers(trainer):
        logger.experiment.add_image(tag, to_pixels(figure), trainer.global_step, dataformats="HWC")  # type: ignore[attr-defined]
