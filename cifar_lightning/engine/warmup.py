"""What is compiled, chosen and loaded at first, done before the clock starts."""

import itertools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn

from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.data import ImageDataModule
from cifar_lightning.metrics import augmented_logits

_MUON_SHAPES = 64
"""Room for as many shapes of matrices in one network."""

_CALLS = 3
"""Of each kind: where torch records CUDA graphs, it does so at the second call, and the third shows that it has."""

Kind = tuple[torch.Size, int, list[nn.Parameter]]
"""Shape of the images, batch size, and the parameters at rest."""


def warm_up(
    classifier: ImageClassifier, trainer: L.Trainer, data: ImageDataModule, shapes: list[torch.Size], *, tta: int
) -> None:
    """Take training and evaluation steps of each kind that a run will, and leave the classifier as it was.

    That compiles what is to be compiled. And at the first call a GPU loads each kernel, and with ``trainer.benchmark``
    cuDNN tries its algorithms: 8 s of the record's speedrun, which then takes 2.0 s.

    Args:
        classifier: On the device that trains, its network compiled in place or not.
        trainer: Which will train it.
        data: Which it will be trained on.
        shapes: Of the training images (C, H, W), by epoch.
        tta: Level of test-time augmentation in the test.
    """
    device, precision = trainer.strategy.root_device, trainer.precision_plugin
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    optimizer = classifier.build_optimizer()
    training, validation, test = _kinds(classifier, optimizer, trainer, data, shapes)
    # Beyond torch's limits kinds would quietly go uncompiled; what earlier jobs of a sweep have compiled counts, too.
    config = torch._dynamo.config
    config.recompile_limit += len(training + validation + test) + _MUON_SHAPES
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, config.recompile_limit)
    precision.convert_module(classifier)
    batches = data.train_batches(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for epoch in (0, len(shapes) - 1):  # for the augmentation, which may differ
            batches.sampler.set_epoch(epoch)
            next(iter(batches))
        for kind in training:
            _train(classifier, precision, optimizer, kind)
        # Compiled code is bound to inference mode, which Lightning has not in the validations within training.
        for kind in validation:
            _evaluate(classifier, precision, kind, torch.no_grad(), tta=0)
        for kind in test:
            inference = torch.inference_mode() if trainer.test_loop.inference_mode else torch.no_grad()
            _evaluate(classifier, precision, kind, inference, tta=tta)
    classifier.train().float()
    classifier.load_state_dict(state)
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # or the clock would wait for what is still to be done


def _train(classifier: ImageClassifier, precision: Precision, optimizer: torch.optim.Optimizer, kind: Kind) -> None:
    shape, batch_size, at_rest = kind
    images = _blank(batch_size, shape, classifier.device)
    with _resting(at_rest):
        for _ in range(_CALLS):
            optimizer.step(partial(_training_step, classifier, precision, images))
            optimizer.zero_grad()


def _training_step(classifier: ImageClassifier, precision: Precision, images: Tensor) -> Any:
    with precision.train_step_context():
        logits = classifier.train()(images).float()
        loss = classifier.loss(logits, logits.argmax(1))
    loss.backward()
    return loss


def _evaluate(
    classifier: ImageClassifier, precision: Precision, kind: Kind, inference: AbstractContextManager[Any], *, tta: int
) -> None:
    shape, batch_size, at_rest = kind
    images = _blank(batch_size, shape, classifier.device)
    with _resting(at_rest), precision.test_step_context(), inference:
        for _ in range(_CALLS):
            augmented_logits(classifier.eval(), images, level=tta)


def _kinds(
    classifier: ImageClassifier,
    optimizer: torch.optim.Optimizer,
    trainer: L.Trainer,
    data: ImageDataModule,
    shapes: list[torch.Size],
) -> tuple[list[Kind], list[Kind], list[Kind]]:
    """Each kind of step in training, validation and test once."""
    planned = zip(shapes, _progress(trainer, data), strict=False)  # in this order: a run may have no planned end
    epochs = [(shape, classifier.ended(optimizer.param_groups, progress)) for shape, progress in planned]
    full = data.arrays("train").images.shape[1:]
    training = [
        (shape, batch_size, ended)
        for shape, ended in epochs
        for batch_size in _batch_sizes(len(data.index["train"]), data.batch_size)
    ]
    num_val, num_test = (len(data.index[split]) for split in ("val", "test"))
    validation = [
        (full, batch_size, ended) for _, ended in epochs for batch_size in _batch_sizes(num_val, data.eval_batch_size)
    ]
    test: list[Kind] = [(full, batch_size, []) for batch_size in _batch_sizes(num_test, data.eval_batch_size)]
    return _distinct(training), _distinct(validation), test


def _distinct(kinds: list[Kind]) -> list[Kind]:
    return list({(shape, size, tuple(map(id, ended))): (shape, size, ended) for shape, size, ended in kinds}.values())


def _progress(trainer: L.Trainer, data: ImageDataModule) -> Iterator[float]:
    """Share of all steps done at the start of each epoch, as Lightning will count them."""
    num_batches, limit = len(data.train_batches()), trainer.limit_train_batches
    num_batches = min(num_batches, limit) if isinstance(limit, int) else int(num_batches * limit)
    num_steps = -(-num_batches // trainer.accumulate_grad_batches)
    max_epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    all_steps = min(num_steps * max_epochs, math.inf if trainer.max_steps == -1 else trainer.max_steps)
    for epoch in itertools.count():
        if epoch * num_steps >= all_steps:
            return
        yield epoch * num_steps / all_steps


@contextmanager
def _resting(parameters: list[nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(False)
    yield
    for parameter in parameters:
        parameter.requires_grad_()


def _batch_sizes(num_images: int, batch_size: int) -> set[int]:
    """Of all batches but the last one, and of the last one."""
    return {min(num_images, batch_size), num_images % batch_size} - {0}


def _blank(batch_size: int, shape: torch.Size, device: torch.device) -> Tensor:
    return torch.zeros(batch_size, *shape, dtype=torch.uint8, device=device)
