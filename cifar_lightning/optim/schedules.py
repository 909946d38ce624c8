"""Learning-rate schedules: functions of progress in [0, 1], the share of all optimizer steps that is done."""

import math
from collections.abc import Callable
from typing import Any

Schedule = Callable[[float], float]
"""Progress in [0, 1] -> factor on the learning rate."""


def constant(progress: float) -> float:
    """The full learning rate throughout; what a run without a schedule has."""
    return 1.0


def factors(groups: list[dict[str, Any]], schedule: Schedule, *, num_steps: float) -> list[Callable[[int], float]]:
    """A schedule as ``LambdaLR`` takes it: for each parameter group a function of the step.

    A group may carry ``end_fraction``: it goes through the whole schedule within that first fraction of all steps, and
    has a factor of 0 from then on.

    Args:
        groups: An optimizer's parameter groups.
        schedule: Progress -> factor.
        num_steps: Number of all steps, at least 1; infinite where no end is planned.
    """

    def factor_until(end: float) -> Callable[[int], float]:
        return lambda step: 0.0 if step >= end * num_steps else schedule(step / num_steps / end)

    def factor(step: int) -> float:
        return schedule(min(1.0, step / num_steps))

    return [factor_until(group["end_fraction"]) if "end_fraction" in group else factor for group in groups]


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

    Source: Page 2018, "How to train your ResNet"; Li et al. 2020 (arXiv:1905.04753) for the linear end.

    >>> [triangular(warmup_fraction=0.2, end_factor=0.5)(p) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
    [0.0, 0.5, 1.0, 0.75, 0.5]
    """
    return _warmed_up(warmup_fraction, start_factor, end_factor, lambda done: 1 - done)


def finetune(*, head_fraction: float = 0.3, warmup_fraction: float = 0.0, trunk_factor: float = 0.1) -> Schedule:
    """The full rate while the head alone is trained, then a lower one, which falls to 0 along half a cosine.

    Args:
        head_fraction: Fraction of all steps in which the head alone is trained, in [0, 1).
        warmup_fraction: Fraction of all steps spent warming up from 0, in [0, 1).
        trunk_factor: Factor as the whole network begins to be trained, in [0, 1].

    Raises:
        ValueError: If an argument is out of its range.

    Source: Howard and Ruder 2018 (arXiv:1801.06146) for the head first; Loshchilov and Hutter 2017 (arXiv:1608.03983)
    for the cosine.

    >>> [round(finetune(head_fraction=0.2, warmup_fraction=0.1)(p), 3) for p in (0.0, 0.05, 0.1, 0.2, 0.6, 1.0)]
    [0.0, 0.5, 1.0, 0.1, 0.05, 0.0]
    """
    for name, value in {"head_fraction": head_fraction, "warmup_fraction": warmup_fraction}.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}")
    if not 0 <= trunk_factor <= 1:
        raise ValueError(f"trunk_factor must be in [0, 1], got {trunk_factor}")

    def factor(progress: float) -> float:
        warmth = progress / warmup_fraction if progress < warmup_fraction else 1.0
        if progress < head_fraction:
            return warmth
        done = (progress - head_fraction) / (1 - head_fraction)
        return warmth * trunk_factor * (1 + math.cos(math.pi * done)) / 2

    return factor


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
