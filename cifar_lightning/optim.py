"""Optimizers as functions of a network, and learning-rate schedules as functions of progress.

An optimizer builder takes the module, not its parameters, so that the parameter groups are chosen in one place. A
schedule maps progress in [0, 1], the fraction of all optimizer steps done, to the factor on the learning rate.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Schedule = Callable[[float], float]

_FUSED = frozenset({"cpu", "cuda", "mps", "xpu"})
"""Device types for which torch has fused kernels: one call per step instead of several per parameter."""


def parameter_groups(net: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in groups: weight decay for matrices and filters, none for biases and norms (rank 0 and 1).

    Source: the split by rank of Loshchilov and Hutter's followers, as in nanoGPT; see also He et al. 2018
    (arXiv:1812.01187, section 3.1), "no bias decay".
    """
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if weight_decay == 0:  # one group: half the kernel calls
        return [{"params": trainable, "weight_decay": 0.0}]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _has_fused_kernels(net: nn.Module) -> bool:
    return all(parameter.device.type in _FUSED for parameter in net.parameters())


def sgd(
    net: nn.Module, *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum; ``torch.optim.SGD`` over ``parameter_groups``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.
    """
    _require_at_least_zero(lr=lr, momentum=momentum, weight_decay=weight_decay)
    if nesterov and momentum == 0:
        raise ValueError("nesterov must be false where momentum is 0, got true")
    groups = parameter_groups(net, weight_decay=weight_decay)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=_has_fused_kernels(net))


def adamw(
    net: nn.Module, *, lr: float, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.01
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay; ``torch.optim.AdamW`` over ``parameter_groups``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: Loshchilov and Hutter 2019 (arXiv:1711.05101).
    """
    _require_at_least_zero(lr=lr, weight_decay=weight_decay)
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be in [0, 1), got {betas}")
    groups = parameter_groups(net, weight_decay=weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), fused=_has_fused_kernels(net))


def _require_at_least_zero(**hyper_parameters: float) -> None:
    for name, value in hyper_parameters.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}")


def cosine(*, warmup_fraction: float = 0.0, end_factor: float = 0.0) -> Schedule:
    """Linear warm-up from 0 to 1, then half a cosine down to ``end_factor``.

    Args:
        warmup_fraction: Fraction of all steps spent warming up, in [0, 1).
        end_factor: Factor at the end, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Source: Loshchilov and Hutter 2017 (arXiv:1608.03983), without restarts.

    >>> [round(cosine(warmup_fraction=0.2)(p), 3) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return _warmed_up(warmup_fraction, end_factor, lambda done: (1 + math.cos(math.pi * done)) / 2)


def triangular(*, warmup_fraction: float = 0.2, end_factor: float = 0.0) -> Schedule:
    """Linear warm-up from 0 to 1, then a straight line down to ``end_factor``.

    Args:
        warmup_fraction: Fraction of all steps spent warming up, in [0, 1).
        end_factor: Factor at the end, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Source: Page 2018, "How to train your ResNet"; Li et al. 2020 (arXiv:1905.04753) on a linear end for small budgets.

    >>> [triangular(warmup_fraction=0.2, end_factor=0.5)(p) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.0, 0.5, 1.0, 0.75, 0.5]
    """
    return _warmed_up(warmup_fraction, end_factor, lambda done: 1 - done)


def _warmed_up(warmup_fraction: float, end_factor: float, fall: Schedule) -> Schedule:
    if not 0 <= warmup_fraction < 1:
        raise ValueError(f"warmup_fraction must be in [0, 1), got {warmup_fraction}")
    if not 0 <= end_factor <= 1:
        raise ValueError(f"end_factor must be in [0, 1], got {end_factor}")

    def factor(progress: float) -> float:
        if progress < warmup_fraction:
            return progress / warmup_fraction
        return end_factor + (1 - end_factor) * fall((progress - warmup_fraction) / (1 - warmup_fraction))

    return factor
