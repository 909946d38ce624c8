"""torch.compile for a network, with the compiling done before the clock starts."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.data import CIFAR10DataModule

MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""What ``compile=`` takes besides true and false: the modes of ``torch.compile``."""


def compile_in_place(net: nn.Module, choice: bool | str) -> None:
    """Compile a network at its first call, unless ``choice`` is False; True stands for torch's default mode."""
    if choice:
        # In place, since assigning torch.compile(net) would rename every weight. Not dynamic, since the images of a run
        # have few shapes, and kernels for any shape are slower than those for one.
        net.compile(mode=None if choice is True else choice, dynamic=False)


def warm_up(
    classifier: ImageClassifier, trainer: L.Trainer, data: CIFAR10DataModule, shapes: Iterable[torch.Size]
) -> None:
    """Have everything compiled that a run calls, by a step of each kind; the classifier is left as it was.

    Args:
        classifier: With its network compiled in place.
        trainer: Which will train it.
        data: Which it will be trained on.
        shapes: Of the training images (C, H, W), one per epoch.
    """
    device = trainer.strategy.root_device
    classifier.to(device)
    state = {name: value.clone() for name, value in classifier.state_dict().items()}
    precision = trainer.precision_plugin
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for shape, batch_size, ended in _steps(classifier, data, list(shapes)):
            for parameter in ended:
                parameter.requires_grad_(False)
            with precision.train_step_context():
                logits = classifier.train()(_blank(batch_size, shape, device)).float()
                loss = classifier.loss(logits, logits.argmax(1))
            loss.backward()
            for parameter in ended:
                parameter.requires_grad_()
        for split in ("val", "test"):
            for batch_size in _batch_sizes(len(data.index[split]), data.eval_batch_size):
                with precision.test_step_context(), _without_gradients(trainer):
                    classifier.eval()(_blank(batch_size, data.arrays(split).images.shape[1:], device))
    classifier.train().zero_grad()
    classifier.load_state_dict(state)


def _steps(
    classifier: ImageClassifier, data: CIFAR10DataModule, shapes: list[torch.Size]
) -> list[tuple[torch.Size, int, list[nn.Parameter]]]:
    """Each kind of training step once: image shape, batch size, and the parameters that need no gradients any more."""
    groups = classifier.build_optimizer().param_groups
    kinds: dict[Any, tuple[torch.Size, int, list[nn.Parameter]]] = {}
    for epoch, shape in enumerate(shapes):
        ended = classifier.ended(groups, epoch / len(shapes))
        for batch_size in _batch_sizes(len(data.index["train"]), data.batch_size):
            kinds[shape, batch_size, tuple(map(id, ended))] = (shape, batch_size, ended)
    return list(kinds.values())


def _batch_sizes(num_images: int, batch_size: int) -> set[int]:
    """Of all batches but the last one, and of the last one."""
    return {min(num_images, batch_size), num_images % batch_size} - {0}


def _blank(batch_size: int, shape: torch.Size, device: torch.device) -> Tensor:
    return torch.zeros(batch_size, *shape, dtype=torch.uint8, device=device)


def _without_gradients(trainer: L.Trainer) -> AbstractContextManager[Any]:
    # What Lightning evaluates in: compiled code is bound to it.
    inference = trainer.test_loop.inference_mode
    return torch.inference_mode() if inference else torch.no_grad()
