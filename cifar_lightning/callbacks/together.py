"""What ranks have to do together at the hooks of training, beside the averaging of their gradients."""

import logging

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from cifar_lightning import ranks
from cifar_lightning.callbacks.freezing import NORMS
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.data.batches import stream_seed

log = logging.getLogger(__name__)

NOTE_ON_NORMS = (
    "note      batch norm takes the statistics of each device's shard, and evaluations those that the first device has "
    "seen; on GPUs trainer.sync_batchnorm=true takes those of whole batches"
)


class Together(Callback):
    """Keeps what ranks do by themselves reproducible, and what a network has besides its parameters alike.

    Each rank draws random numbers of its own, such as dropout's. Batch norm takes the mean and standard deviation of a
    rank's shard; the running ones that count, in evaluations and checkpoints, are those of the first rank.

    Args:
        seed: The run's.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        if ranks.rank():
            torch.manual_seed(stream_seed(self._seed, ranks.rank()))
        ranks.align_buffers(pl_module)
        norms = [module for module in pl_module.net.modules() if isinstance(module, NORMS)]
        if norms and not isinstance(norms[0], torch.nn.SyncBatchNorm):
            log.info("%s", NOTE_ON_NORMS)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        ranks.align_buffers(pl_module)
