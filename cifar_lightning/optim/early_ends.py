"""Freezing: parts of a network whose schedule ends early, and which are frozen from then on."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
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
