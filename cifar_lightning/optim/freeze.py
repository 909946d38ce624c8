"""Freezing: parts of a network whose schedule ends early, and which are frozen from then on; and a trunk before it."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn


def end_early(optimizer: torch.optim.Optimizer, net: nn.Module, ends: Mapping[str, float]) -> None:
    """Let parts of a network come to the end of the schedule before the others: FreezeOut.

    Splits the optimizer's groups, so that those with a part's parameters carry its ``end_fraction``.

    Args:
        optimizer: The network's, before its first step.
        net: The network.
        ends: Names of modules or parameters, such as ``layer1`` or ``conv1.weight``, and for each the fraction of all
            steps after which it is frozen, in (0, 1). Where names overlap the longest one counts.

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
    _split(optimizer, {parameter: {"end_fraction": end} for parameter, end in fractions.items()})


def _split(optimizer: torch.optim.Optimizer, marks: Mapping[nn.Parameter, dict[str, Any]]) -> None:
    """Split the optimizer's groups, so that parameters with other marks are in other groups, which carry the marks."""
    groups = []
    for group in optimizer.param_groups:
        by_mark = defaultdict(list)
        for parameter in group["params"]:
            by_mark[tuple(marks.get(parameter, {}).items())].append(parameter)
        groups += [(bool(mark), {**group, "params": parameters, **dict(mark)}) for mark, parameters in by_mark.items()]
    optimizer.param_groups.clear()
    for _, group in sorted(groups, key=lambda group: group[0]):  # the first one's rate is the one shown
        optimizer.add_param_group(group)


def with_trunk_apart(
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer], head: Collection[str]
) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """A builder of optimizers, in which no group holds parameters of the head and of the trunk.

    torch's fused SGD with momentum wants that the parameters of a group have got their first gradients together.

    Args:
        make_optimizer: A builder of optimizers.
        head: Names of the head's parameters; see ``models.head_of``.
    """

    def make(net: nn.Module) -> torch.optim.Optimizer:
        optimizer = make_optimizer(net)
        _split(optimizer, {p: {"is_trunk": True} for name, p in net.named_parameters() if name not in head})
        return optimizer

    return make


def with_early_ends(
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer], ends: Mapping[str, float]
) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """A builder of optimizers for which ``end_early`` holds; the same builder where no part ends early."""

    def make(net: nn.Module) -> torch.optim.Optimizer:
        optimizer = make_optimizer(net)
        end_early(optimizer, net, ends)
        return optimizer

    return make if ends else make_optimizer


def ended(groups: list[dict[str, Any]], progress: float) -> list[nn.Parameter]:
    """Parameters whose schedule has ended, and which need no gradients any more.

    Args:
        groups: An optimizer's parameter groups.
        progress: Share of all steps done, in [0, 1].
    """
    over = [group for group in groups if progress >= group.get("end_fraction", math.inf)]
    return [parameter for group in over for parameter in group["params"]]
