"""What a run is made of, from its settings: data, classifier, callbacks, Trainer; and whether they fit each other."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from cifar_lightning import models, ranks
from cifar_lightning.callbacks.clock import Clock
from cifar_lightning.callbacks.curves import TrainingCurves
from cifar_lightning.callbacks.finite import FiniteWatch
from cifar_lightning.callbacks.freezing import Freezing, TrunkFreezing
from cifar_lightning.callbacks.progress import EpochProgress
from cifar_lightning.callbacks.reporting import Reporting
from cifar_lightning.callbacks.saving import RunCheckpoints
from cifar_lightning.callbacks.together import Together
from cifar_lightning.checkpoint.format import check_state, description
from cifar_lightning.checkpoint.initial import load_initial
from cifar_lightning.checkpoint.pretrained import load_pretrained
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.config.build import blame, build_augment, build_pieces
from cifar_lightning.config.invocation import Invocation
from cifar_lightning.config.resolve import AUTO, Facts, Section, Settings, settle
from cifar_lightning.data import ImageDataModule, balanced_weights, channel_statistics
from cifar_lightning.device import forward_flops, sensible_threads
from cifar_lightning.engine.compile import refuse_accumulation, with_compiled_update
from cifar_lightning.engine.trainer import build_trainer, check_length, check_limits, refuse_half_precision_on_cpu
from cifar_lightning.errors import SweepError, UserError, one_line
from cifar_lightning.models.torchvision_zoo import TorchvisionNet
from cifar_lightning.optim.freeze import with_early_ends, with_trunk_apart
from cifar_lightning.optim.schedules import Schedule, constant
from cifar_lightning.patches import clippable
from cifar_lightning.runs.folder import LAST
from cifar_lightning.runs.resume import refuse_other_data

log = logging.getLogger(__name__)

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]

NUM_CHECKED_EPOCHS = 1_000
"""Epochs whose augmentation is tried before training, at most: ``trainer.max_epochs`` may stand for "no end"."""


@dataclass(frozen=True)
class Parts:
    """What a training run is made of, once all of it fits together.

    Attributes:
        settings: With what the data and the machine decide.
        shapes: Shapes (C, H, W) of the augmented images, by epoch.
        flops: Floating-point operations of the forward pass of one image.
    """

    settings: Settings
    data: ImageDataModule
    classifier: ImageClassifier
    trainer: L.Trainer
    clock: Clock
    curves: TrainingCurves
    shapes: list[torch.Size]
    flops: int


def assemble(config: Settings, before: Mapping[str, Any] | None, invocation: Invocation) -> Parts:
    """The parts of a training run.

    What costs little is refused before the data are fetched.

    Args:
        config: The settings as asked for.
        before: The checkpoint that the run is resumed from; None for a run that starts.
        invocation: How the command was called.

    Raises:
        UserError: If a part refuses its arguments, or they do not fit each other.
    """
    pieces = build_pieces(config)
    data, clock = pieces.data, Clock()
    curves, saving = TrainingCurves(clock), _build_saving(config)
    own: list[Callback] = [clock, curves, FiniteWatch(), *([Freezing()] if config.freeze else [])]
    if ranks.are_joined():
        own.append(Together(config.seed))
    progress = EpochProgress(curves)
    if config.trainer["enable_progress_bar"] is not False and ranks.is_first():
        own.append(progress)
    if invocation.report is not None:
        own.append(Reporting(invocation.report))
    head = _head_of(config.model) if config.freeze_trunk else set()
    if config.freeze_trunk:
        own.append(TrunkFreezing(config.freeze_trunk, head))
        if config.init is None and not config.model.get("pretrained"):
            log.warning("note      freeze_trunk: the trunk is new; model.pretrained=true or init=CKPT gives it weights")
    refuse_half_precision_on_cpu(config.trainer)
    trainer = build_trainer(
        config.trainer,
        output_dir=config.output_dir,
        freezes=bool(config.freeze or config.freeze_trunk),
        callbacks=[*own, *pieces.callbacks, saving],
        logger=pieces.loggers if ranks.is_first() else False,
    )
    refuse_accumulation(trainer, config.compile)
    optimizer = _prepared(pieces.optimizer, config, head, clips=bool(trainer.gradient_clip_val))
    schedule = pieces.schedule or (constant if config.freeze else None)
    planned = ("schedule", "freeze", "freeze_trunk")
    check_length(trainer, planned_by=next((key for key in planned if getattr(config, key)), None))

    read_data(data, config.data)
    fingerprint = data.fingerprint()
    if before is not None:
        refuse_other_data(config, before["settings"], data.classes, fingerprint)
    _plan_validation(trainer, data, invocation)
    check_limits(trainer, data)

    net = _build_net(config.model, data, pretrained=before is None and config.init is None)
    name = config.model["name"]
    flops = flops_of(net, data.image_shape, refusal=f"model={name} cannot take images of {{size}}")
    settings = settle(config, _facts(config, data, trainer, flops=flops, fingerprint=fingerprint))
    if config.init is not None and before is None:
        load_initial(config.init, net, model=settings.model, normalize=settings.normalize, classes=settings.classes)
    data.augment = build_augment(settings.augment)
    shapes = _image_shapes(settings, data)
    progress.costs = [shape.numel() for shape in shapes]
    for shape in set(shapes) - {data.image_shape}:
        refusal = f"augment: model={name} cannot take the images of {{size}} that it makes in some epoch"
        flops_of(net, shape, refusal=refusal)
    num_images = len(data.index["train"])
    sizes: dict[str, int] = {"num_images": num_images, "batch_size": data.batch_size}
    refuse_single_images(net, shapes, trainer, **sizes, name=name, syncs=config.trainer["sync_batchnorm"])
    weights = balanced_weights(data.targets("train"), len(data.classes)) if config.class_weights else None
    classifier = _build_classifier(settings, net, optimizer, schedule, class_weights=weights)
    with blame("freeze"):
        first_optimizer = optimizer(classifier.net)
    classifier.description = description(settings)
    if before is not None:
        check_state(Path(config.output_dir) / LAST, dict(before), classifier, first_optimizer)
    return Parts(settings, data, classifier, trainer, clock, curves, shapes, flops)


def refuse_early(config: Settings) -> None:
    """Refuse what can be told without data, before processes are started for the run.

    Raises:
        UserError: If a part refuses its arguments.
    """
    build_pieces(config)
    _build_saving(config)
    _head_of(config.model)


def read_data(data: ImageDataModule, section: Section, *, stage: str | None = None) -> None:
    """Read the data that a stage needs, by default all, downloading them where they are absent.

    Args:
        data: The data module.
        section: Its section of the config.
        stage: As in ``ImageDataModule.setup``.

    Raises:
        UserError: If they cannot be had, or the config does not fit them.
    """
    with blame("data", section):
        data.setup(stage)


def _build_saving(config: Settings) -> RunCheckpoints:
    with blame("checkpoint", config.checkpoint):
        return RunCheckpoints(Path(config.output_dir) / LAST.parent, **config.checkpoint)


def _prepared(make: MakeOptimizer, config: Settings, head: set[str], *, clips: bool) -> MakeOptimizer:
    """The builder of optimizers, as compiling, clipping and freezing want it."""
    with blame("optimizer", config.optimizer):
        make(nn.Linear(1, 1))  # to refuse a bad value before the data are read
    make = with_compiled_update(make, config.compile)
    make = clippable(make) if clips else make
    if config.freeze_trunk:
        return with_trunk_apart(make, head)
    return with_early_ends(make, dict(config.freeze))


def _plan_validation(trainer: L.Trainer, data: ImageDataModule, invocation: Invocation) -> None:
    if data.has_val and trainer.limit_val_batches != 0:
        return
    if invocation.sweeper_optimises:
        raise SweepError("data.val_size must be above 0 for a sweeper that optimises val/acc: there are no such images")
    trainer.limit_val_batches = 0  # no validation loop, and no warning about an empty one


def _facts(
    config: Settings, data: ImageDataModule, trainer: L.Trainer, *, flops: int, fingerprint: dict[str, str]
) -> Facts:
    """What the data and the machine decide; the pixels are measured where the config asks for that."""
    mean, std = None, None
    if AUTO in (*config.normalize.values(), (config.augment or {}).get("mean")):
        mean, std = channel_statistics(images for images, _ in data.eval_batches("train"))
    return Facts(
        classes=tuple(data.classes),
        fingerprint=fingerprint,
        in_channels=data.image_shape[0],
        image_size=(data.image_shape[1], data.image_shape[2]),
        mean=mean,
        std=std,
        precision=str(trainer.precision),
        num_threads=sensible_threads(flops * data.batch_size // ranks.world_size(), ranks.local_world_size()),
    )


def _build_net(section: Section, data: ImageDataModule, *, pretrained: bool) -> nn.Module:
    with blame("model", section):
        net = models.build(**{**section, "num_classes": len(data.classes), "in_channels": data.image_shape[0]})
        if pretrained and isinstance(net, TorchvisionNet) and net.pretrained:  # no weights that would be replaced
            load_pretrained(net)
    return net


def _head_of(section: Section) -> set[str]:
    with blame("model", section):
        return models.head_of(**{**section, "num_classes": 2, "in_channels": 3})


def flops_of(net: nn.Module, shape: torch.Size, *, refusal: str) -> int:
    """Floating-point operations of the forward pass of one image.

    Args:
        net: The network, on the CPU.
        shape: Of the image, (C, H, W).
        refusal: What is said of images that do not fit the network; ``{size}`` stands for their size.

    Raises:
        UserError: If images of this shape do not fit the network, so that it is said before a long run.
    """
    image = torch.zeros(1, *shape, dtype=next(net.parameters()).dtype)
    try:
        return forward_flops(net, image)
    except RuntimeError as error:
        raise UserError(f"{refusal.format(size='x'.join(map(str, shape)))}: {one_line(error)}") from error


def refuse_single_images(
    net: nn.Module,
    shapes: Sequence[torch.Size],
    trainer: L.Trainer,
    *,
    num_images: int,
    batch_size: int,
    name: str,
    syncs: bool = False,
) -> None:
    """Refuse, before a long run, a batch of one image that the network cannot train on, as batch norm may not.

    The network is tried on a blank image, as a copy; so neither it nor the random numbers change. Of a batch that
    several devices share, the smallest shard counts.

    Args:
        net: The network, on the CPU.
        shapes: Of the images (C, H, W), by epoch.
        trainer: Whose limits say whether the last batch of an epoch is used.
        num_images: Training images.
        batch_size: Images per batch.
        name: Of the network, for the message.
        syncs: Whether batch norms take the statistics of all devices' shards.

    Raises:
        UserError: If there will be such a batch.
    """
    num_batches, limit, world_size = -(-num_images // batch_size), trainer.limit_train_batches, ranks.world_size()
    used = min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)
    if trainer.max_steps != -1:
        used = min(used, trainer.max_steps * trainer.accumulate_grad_batches)
    last = num_images % batch_size if used >= num_batches else 0
    if syncs and 0 < last < world_size:  # a device without an image of its own would add one to the statistics
        raise UserError(
            f"data.batch_size={batch_size}: of {num_images:,} training images the last batch has {last}, too few for "
            f"the batch norms of {world_size} devices with trainer.sync_batchnorm; choose another size"
        )

    def smallest(size: int) -> int:
        return size if syncs else max(1, size // world_size)

    if smallest(batch_size) > 1 and (last == 0 or smallest(last) > 1):
        return
    tried = copy.deepcopy(net).train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for shape in set(shapes):
                tried(torch.zeros(1, *shape, dtype=next(net.parameters()).dtype))
    except (RuntimeError, ValueError) as error:
        sizes = range(batch_size + 1, num_images + 1)
        fits = next((n for n in sizes if smallest(n) > 1 and (num_images % n == 0 or smallest(num_images % n) > 1)), 0)
        advice = f"with data.batch_size={fits} it has more" if fits else "it wants more training images"
        part = "the last batch has 1" if world_size == 1 else f"the smallest shard of {world_size} devices has 1"
        raise UserError(
            f"data.batch_size={batch_size}: of {num_images:,} training images {part}, and model={name} "
            f"cannot train on one alone ({one_line(error)}); {advice}"
        ) from error


def _image_shapes(settings: Settings, data: ImageDataModule) -> list[torch.Size]:
    """Shapes (C, H, W) of the augmented images, by epoch; of the first ``NUM_CHECKED_EPOCHS`` at most.

    Raises:
        UserError: If the augmentation does not fit the images.
    """
    image = data.arrays("train").gather(torch.tensor([0]))
    max_epochs = settings.trainer["max_epochs"]
    num_epochs = min(max_epochs, NUM_CHECKED_EPOCHS) if max_epochs and max_epochs > 0 else NUM_CHECKED_EPOCHS
    if data.augment is None:
        return [image.shape[1:]] * num_epochs
    with blame("augment", settings.augment):
        return [data.augment(image, epoch, torch.Generator()).shape[1:] for epoch in range(num_epochs)]


def _build_classifier(
    settings: Settings,
    net: nn.Module,
    optimizer: MakeOptimizer,
    schedule: Schedule | None,
    *,
    class_weights: list[float] | None,
) -> ImageClassifier:
    mean, std = settings.normalize["mean"], settings.normalize["std"]
    with blame("normalize", settings.normalize):
        if len(mean) not in (1, settings.model["in_channels"]):
            raise ValueError(f"mean must have 1 or {settings.model['in_channels']} numbers, got {list(mean)}")
        return ImageClassifier(
            net,
            mean=mean,
            std=std,
            optimizer=optimizer,
            schedule=schedule,
            label_smoothing=settings.label_smoothing,
            class_weights=class_weights,
        )
