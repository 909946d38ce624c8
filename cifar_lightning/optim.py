"""Optimizers as functions of a network, and learning-rate schedules as functions of progress.

An optimizer builder takes the module, not its parameters, so that the parameter groups are chosen in one place. A
schedule maps progress in [0, 1], the fraction of all optimizer steps done, to the factor on the learning rate. A group
may carry ``end_fraction``: it goes through the whole schedule within that first fraction of all steps, and then rests.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from cifar_lightning.muon import Muon

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
    """Muon for the filters, Nesterov SGD with own learning rates for all else; see ``parameter_kinds``.

    Muon's learning rate is relative to the weights. Those of SGD go with the mean loss over a batch: they are a
    summed-loss recipe's times its batch size.

    Args:
        net: The network; meant for one whose filters are followed by batch norms.
        lr: Learning rate of the filters.
        momentum: Share of the filters' momentum that each step keeps, in [0, 1).
        ns_steps: Iterations of ``newton_schulz``, at least 1.
        head_lr: Learning rate of the matrices.
        norm_lr: Learning rate of biases and norms.
        whiten_bias_lr: Learning rate of a whitening layer's bias.
        sgd_momentum: Share of the momentum in the groups of SGD, in [0, 1).
        weight_decay: Share of the weights that decay takes off per step, before momentum makes it
            1 / (1 - ``sgd_momentum``) times as much, in all groups of SGD. Unlike in ``sgd`` it is not multiplied by
            the learning rate, only by the schedule, so that rates can be tuned without it. The filters have none, for
            their norm is fixed.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the groups and the decay as
    in Jordan 2024 (arXiv:2404.00498), after Page 2019, "How to train your ResNet 8: bag of tricks".
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
    """Nesterov SGD with a learning rate of its own for biases and norms; what the speedruns used before Muon.

    Learning rates go with the mean loss over a batch: they are a summed-loss recipe's times its batch size.

    Args:
        net: The network.
        lr: Learning rate of filters and matrices, and of a whitening layer's bias.
        norm_lr: Learning rate of biases and norms.
        momentum: Share of the momentum that each step keeps, in (0, 1).
        weight_decay: As in ``muon``, but of the filters too.

    Raises:
        ValueError: If a hyper-parameter is out of its range.

    Source: Jordan 2024 (arXiv:2404.00498), after Page 2019, "How to train your ResNet 8: bag of tricks".
    """
    _require_at_least_zero(lr=lr)
    _require_momentum(momentum=momentum)
    if momentum == 0:
        raise ValueError("momentum must be above 0, for it is Nesterov's, got 0.0")
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
    """A group for each kind, whose decay takes the same share off the weights whatever its learning rate."""
    _require_at_least_zero(weight_decay=weight_decay, **{f"{name}_lr": rate for name, rate in rates.items()})
    return [
        {"params": kinds[name], "lr": rate, "weight_decay": weight_decay / rate if rate > 0 else 0.0}
        for name, rate in rates.items()
    ]


def end_early(optimizer: torch.optim.Optimizer, net: nn.Module, ends: Mapping[str, float]) -> None:
    """Let parts of a network come to the end of the schedule before the others: FreezeOut.

    Splits the optimizer's groups, so that those with a part's parameters carry its ``end_fraction``.

    Args:
        optimizer: The network's, before its first step.
        net: The network.
        ends: Names of modules or parameters, such as ``layer1`` or ``conv1.weight``, and for each the fraction of all
            steps after which it rests, in (0, 1). Where names overlap the longest one counts.

    Raises:
        ValueError: If the network has no part of such a name that is trained, a fraction is out of its range, or no
            part is left that is trained to the end.

    Source: Brock et al. 2017 (arXiv:1706.04983), without their scaled rates.
    """
    for part, end in ends.items():
        if not 0 < end < 1:
            raise ValueError(f"{part} must be in (0, 1), got {end}")
    fractions: dict[nn.Parameter, float] = {}
    for part in sorted(ends, key=len):
        found = [p for name, p in net.named_parameters() if f"{name}.".startswith(f"{part}.") and p.requires_grad]
        if not found:
            names = ", ".join(name for name, _ in net.named_children())
            raise ValueError(f"{part} must name a part of the network that is trained: {names} or what they hold")
        fractions |= dict.fromkeys(found, ends[part])
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if all(parameter in fractions for parameter in trained):
        raise ValueError(f"{', '.join(ends)} must leave a part of the network that is trained to the end")
    groups = []
    for group in optimizer.param_groups:
        by_fraction = defaultdict(list)
        for parameter in group["params"]:
            by_fraction[fractions.get(parameter)].append(parameter)
        for fraction, parameters in by_fraction.items():
            ending: dict[str, Any] = {} if fraction is None else {"end_fraction": fraction}
            groups.append({**group, "params": parameters, **ending})
    optimizer.param_groups.clear()
    for group in sorted(groups, key=lambda group: "end_fraction" in group):  # the first one's rate is the one shown
        optimizer.add_param_group(group)


def parameter_kinds(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters by what they are for.

    A network may say so itself, in a method ``parameter_kinds``; otherwise their ranks decide.

    Returns:
        ``filters`` of convolutions, ``head``: matrices, ``norm``: biases and the scales of norms, and ``whiten_bias``,
        the bias of a whitening layer, which no rank tells. Each trainable parameter has one kind.
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
    return _warmed_up(warmup_fraction, 0.0, end_factor, lambda done: (1 + math.cos(math.pi * done)) / 2)


def triangular(*, warmup_fraction: float = 0.2, start_factor: float = 0.0, end_factor: float = 0.0) -> Schedule:
    """Linear warm-up from ``start_factor`` to 1, then a straight line down to ``end_factor``.

    Args:
        warmup_fraction: Fraction of all steps spent warming up, in [0, 1).
        start_factor: Factor at the start of the warm-up, in [0, 1].
        end_factor: Factor at the end, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Source: Page 2018, "How to train your ResNet"; Li et al. 2020 (arXiv:1905.04753) on a linear end for small budgets.

    >>> [triangular(warmup_fraction=0.2, end_factor=0.5)(p) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.0, 0.5, 1.0, 0.75, 0.5]
    """
    return _warmed_up(warmup_fraction, start_factor, end_factor, lambda done: 1 - done)


def _warmed_up(warmup_fraction: float, start_factor: float, end_factor: float, fall: Schedule) -> Schedule:
    if not 0 <= warmup_fraction < 1:
        raise ValueError(f"warmup_fraction must be in [0, 1), got {warmup_fraction}")
    for name, value in {"start_factor": start_factor, "end_factor": end_factor}.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")

    def factor(progress: float) -> float:
        if progress < warmup_fraction:
            return start_factor + (1 - start_factor) * progress / warmup_fraction
        return end_factor + (1 - end_factor) * fall((progress - warmup_fraction) / (1 - warmup_fraction))

    return factor
