"""The processes that share one run, its ranks: which one this is, and what they tell each other.

Each has a device and a shard of every batch. Whether a run has ranks is asked here and nowhere else: where it is one
process, ``rank`` is 0, ``world_size`` is 1, and what is told to the others is given back as it is.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Int64, UInt8
from torch import Tensor, nn

T = TypeVar("T")

Shard = tuple[UInt8[Tensor, "s c h w"], Int64[Tensor, " s"], Int64[Tensor, " b"], int]
"""What a rank gets of a training batch: images and targets, all targets of the batch, and how many are its own."""

SECONDS_BETWEEN_TALKS = 0.5
"""Between two talks on whether to save or to stop, at least: one takes as long as a small network's step."""


@dataclass(frozen=True)
class Place:
    """The place that a launcher has given this process.

    Attributes:
        launcher: Name of the command that has started it: ``torchrun`` or ``srun``.
        rank: Its number, from 0.
        world_size: How many there are.
    """

    launcher: str
    rank: int
    world_size: int


def place_in(environment: Mapping[str, str]) -> Place | None:
    """The place that the environment of a process says it has among several; None for a process by itself.

    A batch script of SLURM has the variables of its job too; ``SLURM_STEP_ID`` is what srun alone sets.
    """
    names = {"torchrun": ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE")}
    names["srun"] = ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS")
    for launcher, (mark, rank, size) in names.items():
        if mark in environment and environment.get(rank, "").isdigit() and environment.get(size, "").isdigit():
            place = Place(launcher, int(environment[rank]), int(environment[size]))
            if place.rank < place.world_size > 1:
                return place
    return None


def are_joined() -> bool:
    """Whether this process is one of a group of ranks, be it a group of one."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if are_joined() else 0


def is_first() -> bool:
    """Whether this process is the one that writes files and shows what is done."""
    return rank() == 0


def world_size() -> int:
    """Number of ranks."""
    return dist.get_world_size() if are_joined() else 1


def local_world_size() -> int:
    """Number of ranks on this machine."""
    if not are_joined():
        return 1
    names = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE")
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 1)


def join(address: str, port: int, place: Place) -> None:
    """Become one of a group of ranks, which talk over the CPU by gloo, and over GPUs by NCCL where there are some."""
    has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if has_nccl else "gloo",
        init_method=f"tcp://{address}:{port}" if place.launcher == "srun" else "env://",
        rank=place.rank,
        world_size=place.world_size,
    )


def leave() -> None:
    """Be a process by itself again."""
    if are_joined():
        dist.destroy_process_group()


def gathered(value: T) -> list[T]:
    """A value of each rank, in their order. Tensors in it must be on the CPU."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def summed(values: Sequence[float]) -> list[float]:
    """Sums of numbers over the ranks."""
    return _reduced(values, dist.ReduceOp.SUM) if world_size() > 1 else list(values)


def largest(values: Sequence[float]) -> list[float]:
    """The largest of each number that a rank has."""
    return _reduced(values, dist.ReduceOp.MAX) if world_size() > 1 else list(values)


def _reduced(values: Sequence[float], operation: Any) -> list[float]:
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, operation)
    return tensor.tolist()


def from_first(make: Callable[[], T]) -> T:
    """What the first rank makes, on all ranks; an exception of it is raised on all, with ``of_all`` set to true."""
    if world_size() == 1:
        return make()
    told: list[Any] = [None, None]
    if is_first():
        try:
            told[0] = make()
        except Exception as error:
            told[1] = error
    dist.broadcast_object_list(told)
    if told[1] is not None:
        told[1].of_all = True
        raise told[1]
    return told[0]


def align_buffers(module: nn.Module) -> None:
    """Set a module's buffers, such as batch norm's statistics, to those of the first rank."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


class Talks:
    """Talks of all ranks, at the same steps and no more often than is worth it.

    How many steps lie between two talks is agreed in the one before, from the time that a step takes.

    Args:
        seconds: Between two talks, at least; 0 for a talk at each step.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._steps_left = 0
        self._num_steps = 1
        self._since: float | None = None

    def is_due(self) -> bool:
        """Whether there may be a talk after this step; called once for each."""
        self._steps_left -= 1
        return self._steps_left <= 0

    def largest(self, values: Sequence[float]) -> list[float]:
        """The largest of each number that a rank has."""
        num_steps = self._num_steps - self._steps_left  # those that could be no talk came on top
        seconds = 0.0 if self._since is None else (time.monotonic() - self._since) / max(1, num_steps)
        *agreed, seconds_per_step = largest([*values, seconds])
        num_steps = int(self._seconds / seconds_per_step) if seconds_per_step > 0 else 1
        self._steps_left = self._num_steps = max(1, min(num_steps, 1000))
        self._since = time.monotonic()
        return agreed
