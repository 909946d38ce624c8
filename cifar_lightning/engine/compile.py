"""torch.compile for a network and its optimizer."""

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lightning as L
import torch
from torch import nn

from cifar_lightning import ranks
from cifar_lightning.errors import UserError
from cifar_lightning.optim.muon import Muon


def compile_in_place(net: nn.Module, choice: bool | str) -> None:
    """Compile a network at its first call, unless ``choice`` is False; True stands for torch's default mode."""
    if choice:
        # In place, since assigning torch.compile(net) would rename every weight. Not dynamic, since the images of a run
        # have few shapes, and kernels for any shape are slower than those for one.
        net.compile(mode=None if choice is True else choice, dynamic=False)


def with_compiled_update(
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer], choice: bool | str
) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """A builder of optimizers, whose Muon is compiled on a GPU, unless ``choice`` is False; see ``compile_in_place``.

    Python takes longer to launch Muon's many small products than a GPU to compute them.
    """

    def make(net: nn.Module) -> torch.optim.Optimizer:
        optimizer = make_optimizer(net)
        if isinstance(optimizer, Muon) and is_on_gpu(net):
            optimizer.compile(mode=_without_graphs(choice), dynamic=False)
        return optimizer

    return make if choice else make_optimizer


def is_on_gpu(net: nn.Module) -> bool:
    """Whether all of a network's parameters are on a CUDA device."""
    return all(parameter.is_cuda for parameter in net.parameters())


_WITHOUT_GRAPHS = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}
"""Modes that use CUDA graphs, and those next to them that do not."""


def _without_graphs(choice: bool | str) -> str | None:
    return None if choice is True else _WITHOUT_GRAPHS.get(str(choice), str(choice))


def refuse_accumulation(trainer: L.Trainer, choice: bool | str) -> None:
    """Refuse to accumulate or average gradients where CUDA graphs compute them: each batch overwrites the last one's.

    Raises:
        UserError: If it is asked for.

    Source: pytorch/pytorch#169545.
    """
    num = trainer.accumulate_grad_batches
    if ranks.world_size() > 1 and choice in _WITHOUT_GRAPHS and trainer.strategy.root_device.type == "cuda":
        raise UserError(
            f"compile={choice}: its CUDA graphs do not go together with several devices, whose gradients are averaged "
            f"on the way; compile={_WITHOUT_GRAPHS[str(choice)]} does, or set trainer.devices=1"
        )
    if num > 1 and choice in _WITHOUT_GRAPHS and trainer.strategy.root_device.type == "cuda":
        raise UserError(
            f"trainer.accumulate_grad_batches must be 1 on a GPU with compile={choice}, whose CUDA graphs overwrite "
            f"gradients, got {num}; compile={_WITHOUT_GRAPHS[str(choice)]} uses none"
        )


@contextmanager
def refuse_without_compiler(choice: bool | str) -> Iterator[None]:
    """Say in one line that torch.compile has found no C or C++ compiler.

    Raises:
        UserError: If that is so.
    """
    try:
        yield
    except RuntimeError as error:
        if not choice or not re.search(r"C(\+\+)? compiler", str(error)):
            raise
        said = str(error).splitlines()[0]
        raise UserError(
            f"compile={str(choice).lower()}: torch.compile has found no working C or C++ compiler ({said}); install "
            "one, such as g++, or set compile=false"
        ) from error


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect garbage now, and none meanwhile.

    The CUDA graphs of networks before would otherwise be destroyed at any time, and recording another one fails if that
    happens meanwhile: pytorch/pytorch#161037. The eighth job of a sweep failed, likely by that.
    """
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
