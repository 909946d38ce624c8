"""Optimizers as functions of a network."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from cifar_lightning.optim.muon import Muon

_FUSED = frozenset({"cpu", "cuda", "mps", "xpu"})
"""Device types with fused optimizer kernels in torch: one call per step instead of several per parameter."""


def parameter_groups(net: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Group the trainable parameters: weight decay for matrices and filters, none for biases and norms (rank 0 and 1).

    Source: nanoGPT for the split by rank; He et al. 2018 (arXiv:1812.01187, section 3.1), "no bias decay".
    """
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if weight_decay == 0:  # one group needs half the kernel calls
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
    net: nn.Module, *, lr: float, betas: Sequence[float] = (0.9, 0.999), weight_decay: float = 0.01
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay; ``torch.optim.AdamW`` over ``parameter_groups``.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: Loshchilov and Hutter 2019 (arXiv:1711.05101).
    """
    _require_at_least_zero(lr=lr, weight_decay=weight_decay)
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers in [0, 1), got {list(betas)}")
    groups = parameter_groups(net, weight_decay=weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), fused=_has_fused_kernels(net))


def muon(
    net: nn.Module,
    *,
    lr: float,
    momentum: float = 0.6,
    ns_steps: int = 3,
    head_lr: float = 0.1,
    norm_lr: float = 0.1,
    whiten_bias_lr: float = 0.1,
    sgd_momentum: float = 0.85,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Muon for the filters, Nesterov SGD with its own learning rates for all other parameters; see ``parameter_kinds``.

    Muon's learning rate is relative to the norm of the weights. The learning rates of SGD are for the mean loss over a
    batch. A rate for the summed loss times the batch size is the same rate for the mean loss.

    Args:
        net: The network. A batch norm should follow each convolution.
        lr: Learning rate of the filters.
        momentum: Share of the filters' momentum that each step keeps, in [0, 1).
        ns_steps: Iterations of ``newton_schulz``, at least 1.
        head_lr: Learning rate of the matrices.
        norm_lr: Learning rate of biases and norms.
        whiten_bias_lr: Learning rate of a whitening layer's bias.
        sgd_momentum: Share of the momentum that each step keeps in the SGD groups, in [0, 1).
        weight_decay: Share of the weights that a step takes off in the SGD groups, at least 0. Momentum then makes it
            1 / (1 - ``sgd_momentum``) times as much. It is multiplied by the schedule, but not by the learning rate as
            in ``sgd``, so that both can be tuned independently. The filters have no decay, since their norm is fixed.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Jordan 2024
    (arXiv:2404.00498), after Page 2019, "How to train your ResNet 8: bag of tricks", for the groups and the decay.
    """
    if ns_steps < 1:
        raise ValueError(f"ns_steps must be at least 1, got {ns_steps}")
    _require_at_least_zero(lr=lr)
    _require_momentum(momentum=momentum, sgd_momentum=sgd_momentum)
    kinds = parameter_kinds(net)
    groups = _groups_with_own_decay(
        kinds,
        {"head": head_lr, "norm": norm_lr, "whiten_bias": whiten_bias_lr},
        weight_decay=weight_decay,
    )
    for group in groups:
        group |= {"kind": "sgd", "momentum": sgd_momentum}
    groups.insert(0, {"kind": "muon", "params": kinds["filters"], "momentum": momentum})
    return Muon([group for group in groups if group["params"]], lr=lr, ns_steps=ns_steps)


def sgd_by_kind(
    net: nn.Module,
    *,
    lr: float,
    norm_lr: float,
    momentum: float = 0.85,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Nesterov SGD; biases and norms have their own learning rate. The speedruns used it before Muon.

    Learning rates are for the mean loss over a batch, as in ``muon``.

    Args:
        net: The network.
        lr: Learning rate of filters and matrices, and of a whitening layer's bias.
        norm_lr: Learning rate of biases and norms.
        momentum: Share of the momentum that each step keeps, in (0, 1).
        weight_decay: As in ``muon``, but the filters have it too.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: Jordan 2024 (arXiv:2404.00498), after Page 2019, "How to train your ResNet 8: bag of tricks".
    """
    _require_at_least_zero(lr=lr)
    _require_momentum(momentum=momentum)
    if momentum == 0:
        raise ValueError("momentum must be above 0 for Nesterov momentum, got 0.0")
    groups = _groups_with_own_decay(
        parameter_kinds(net),
        {"filters": lr, "head": lr, "norm": norm_lr, "whiten_bias": lr},
        weight_decay=weight_decay,
    )
    groups = [group for group in groups if group["params"]]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=True, fused=_has_fused_kernels(net))


def _groups_with_own_decay(
    kinds: dict[str, list[nn.Parameter]], rates: dict[str, float], *, weight_decay: float
) -> list[dict[str, Any]]:
    """Make a group for each kind; its decay takes the same share off the weights at any learning rate."""
    _require_at_least_zero(weight_decay=weight_decay, **{f"{name}_lr": rate for name, rate in rates.items()})
    return [
        {"params": kinds[name], "lr": rate, "weight_decay": weight_decay / rate if rate > 0 else 0.0}
        for name, rate in rates.items()
    ]


def parameter_kinds(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Group the trainable parameters of a network by kind.

    A network may have a method ``parameter_kinds`` that returns them. Otherwise the rank of a parameter decides.

    Returns:
        ``filters``: those of convolutions. ``head``: matrices. ``norm``: biases and the scales of norms.
        ``whiten_bias``: the bias of a whitening layer, which only the network's own method can name. Each trainable
        parameter has one kind.
    """
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    by_rank = {
        "filters": [p for p in trainable if p.ndim > 2],
        "head": [p for p in trainable if p.ndim == 2],
        "norm": [p for p in trainable if p.ndim < 2],
        "whiten_bias": [],
    }
    if not hasattr(net, "parameter_kinds"):
        return by_rank
    kinds = net.parameter_kinds()  # type: ignore[operator]
    named = [id(parameter) for parameters in kinds.values() for parameter in parameters]
    assert set(kinds) == set(by_rank), f"parameter_kinds must name {', '.join(by_rank)}, got {', '.join(kinds)}"
    assert sorted(named) == sorted(map(id, trainable)), "parameter_kinds must hold each trainable parameter once"
    return kinds


def _require_momentum(**momenta: float) -> None:
    for name, value in momenta.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}")


def _require_at_least_zero(**hyper_parameters: float) -> None:
    for name, value in hyper_parameters.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
