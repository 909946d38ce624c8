"""``seeds=5``: a short way to say ``seed=0,1,2,3,4``."""

from collections.abc import Sequence

from cifar_lightning.errors import UserError, printable, shortened

MOST = 10_000
"""More seeds than any sweep has."""


def with_seeds(overrides: Sequence[str], *, is_sweep: bool) -> list[str]:
    """Overrides in which ``seeds=5`` has become ``seed=0,1,2,3,4``, as Hydra reads and records it.

    Raises:
        UserError: If the number is none, ``seed`` is given too, or the command is no sweep.
    """
    given = [override for override in overrides if override.partition("=")[::2][0] == "seeds"]
    if not given:
        return list(overrides)
    shown = shortened(printable(given[0]), 60)
    if len(given) > 1 or any(override.partition("=")[0] == "seed" for override in overrides):
        raise UserError(f"{shown}: the seeds are given twice; leave out all but one of seed= and seeds=")
    number = given[0].removeprefix("seeds").removeprefix("=")
    if not (number.isascii() and number.isdecimal() and len(number) < 7 and 1 <= int(number) <= MOST):
        raise UserError(f"{shown}: seeds must be a whole number in [1, {MOST:,}], as in seeds=5 for seed=0,1,2,3,4")
    if not is_sweep:
        raise UserError(f"{shown}: several runs are a sweep; add -m, as in python train.py -m {shown}")
    seeds = "seed=" + ",".join(map(str, range(int(number))))
    return [seeds if override == given[0] else override for override in overrides]
