"""Spaces to search, in Hydra's own words: choice, range, interval, and tag with log or int."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Sweep
from hydra.errors import HydraException

from cifar_lightning.config.recipe import is_below
from cifar_lightning.errors import UserError, one_line, printable, shortened

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

WORDS = "choice(a,b,c), range(a,b), interval(a,b), tag(log,interval(a,b)) or tag(int,interval(a,b))"
"""What a space may be, for messages."""

_MAX_CHOICES = 10_000

_REFUSED = {
    "output_dir": "each trial has its folder in the study's",
    "resume": "the same command continues a search, in the same study=",
}
_FIXED = {
    "seed": "a seed is not searched: seeds=3 runs each trial with three, whose mean counts",
    **dict.fromkeys(
        (
            *("data.val_size", "data.split_seed", "data.root", "data.dataset", "data.name"),
            *("data.eval_batch_size", "trainer.limit_val_batches"),
        ),
        "all trials of a study must be validated on the same images: give it one value",
    ),
}
"""Keys, each with those below it, that have one value in a study."""


@dataclass(frozen=True)
class Parameter:
    """A key that is searched.

    Attributes:
        key: Of train.py.
        texts: The values as they are typed, of a choice or range; none of an interval.
        low: The lowest number; None of a choice.
        high: The highest.
        step: Between two numbers of a range.
        is_int: Whether all are whole numbers.
        is_log: Whether it is searched on a logarithmic scale.
        spelled: The space as it was typed.
    """

    key: str
    texts: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    step: float | None = None
    is_int: bool = False
    is_log: bool = False
    spelled: str = field(default="", compare=False)

    @property
    def tried(self) -> tuple[str, ...]:
        """Values that are tried before a search begins: all of a few, else the ends."""
        if self.low is None or self.high is None:
            return self.texts[:20]
        return tuple(dict.fromkeys((self.text(self.low), self.text(self.high))))

    def distribution(self) -> BaseDistribution:
        """The space in Optuna's words. The values of a choice are texts: Optuna takes no lists."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # an extra

        if self.low is None or self.high is None:
            return CategoricalDistribution(self.texts)
        if self.is_int:
            return IntDistribution(int(self.low), int(self.high), step=int(self.step or 1), log=self.is_log)
        return FloatDistribution(self.low, self.high, step=self.step, log=self.is_log)

    def text(self, value: Any) -> str:
        """A value of the distribution as it is typed: of an interval with four digits or what its width needs."""
        if self.low is None or self.high is None:
            return str(value)
        if self.texts:
            return min(self.texts, key=lambda text: abs(float(text) - value))
        if self.is_int:
            return str(int(value))
        size = max(abs(self.low), abs(self.high))
        digits = min(17, 4 + max(0, math.floor(math.log10(size / (self.high - self.low)) + 1e-9)))
        rounded = float(f"{value:.{digits}g}")
        return repr(min(max(rounded, self.low), self.high))

    def value(self, text: str) -> Any:
        """The value of the distribution that a text of a choice or range stands for."""
        if self.low is None:
            return text
        return int(text) if self.is_int else float(text)

    def holds(self, value: Any) -> bool:
        """Whether a value, which may come from a file, is one of the space."""
        if self.low is None or self.high is None:
            return value in self.texts
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True)
class Space:
    """What is searched, and what is not.

    Attributes:
        parameters: In the order of keys.
        fixed: Overrides that all trials have.
    """

    parameters: tuple[Parameter, ...]
    fixed: tuple[str, ...]

    @property
    def num_points(self) -> int | None:
        """How many points there are; None where one of the spaces is an interval."""
        if not all(parameter.texts for parameter in self.parameters):
            return None
        return math.prod(len(parameter.texts) for parameter in self.parameters)

    def point(self, number: int) -> dict[str, str]:
        """A point of a grid, counted from 0; the last key changes first."""
        chosen = {}
        for parameter in reversed(self.parameters):
            number, index = divmod(number, len(parameter.texts))
            chosen[parameter.key] = parameter.texts[index]
        return dict(reversed(chosen.items()))

    def overrides(self, texts: Mapping[str, str]) -> list[str]:
        """What is typed for a point: what all trials have, then its own values."""
        return [*self.fixed, *(f"{key}={text}" for key, text in texts.items())]


def read_space(named: Mapping[str, str], overrides: Iterable[str], *, may_be_empty: bool = False) -> Space:
    """The space of a search.

    Args:
        named: Spaces by key, from a file.
        overrides: Those of train.py, as typed: values and spaces. The last one of a key counts, also
            against one of the file.
        may_be_empty: Whether there may be nothing to search.

    Raises:
        UserError: If one cannot be read or searched, or there is none.
    """
    found: dict[str, Parameter | str] = {}
    for text in [*(f"{key}={value}" for key, value in named.items()), *overrides]:
        override = _parsed(text)
        key = override.key_or_group  # without + and ++, which add nothing to a key that is there
        _refuse_key(key, text, is_space=override.is_sweep_override())
        found.pop(key, None)
        found[key] = _parameter(key, text, override) if override.is_sweep_override() else text
    parameters = sorted((one for one in found.values() if isinstance(one, Parameter)), key=lambda one: one.key)
    if not parameters and not may_be_empty:
        raise UserError(f"nothing is searched: give a key a space, such as optimizer.lr='interval(0.001,0.1)': {WORDS}")
    return Space(tuple(parameters), tuple(one for one in found.values() if isinstance(one, str)))


def _parsed(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, RecursionError, ValueError) as error:
        why = one_line(error.__cause__ or error).partition("See https")[0].strip()
        if "choice(" in text and "NoneType" in why:
            why = "a choice has no null; write the values without it, as in key=null,0.1"
        raise UserError(f"cannot read {shortened(printable(text), 100)}: {why}; a space is {WORDS}") from error


def _refuse_key(key: str, text: str, *, is_space: bool) -> None:
    shown = shortened(printable(text), 100)
    for refused, why in _REFUSED.items():
        if is_below(key, [refused]):
            raise UserError(f"{shown}: {why}; leave it out")
    for fixed, why in _FIXED.items():
        if is_space and (is_below(key, [fixed]) or (key == "data" and fixed != "seed")):
            raise UserError(f"{shown}: {why}")


def _parameter(key: str, text: str, override: Override) -> Parameter:
    sweep = override.value()
    shown = shortened(printable(text), 100)
    if not isinstance(sweep, Sweep):  # a glob
        raise UserError(f"{shown}: a space is {WORDS}")
    if unknown := sorted(sweep.tags - {"log", "int"}):
        raise UserError(f"{shown}: a tag is log or int, got {printable(unknown[0])}")
    if getattr(sweep, "shuffle", False):  # each process would draw an order of its own
        raise UserError(f"{shown}: the order of values does not count in a search: leave shuffle out")
    spelled = text.partition("=")[2]
    if isinstance(sweep, IntervalSweep):
        return _interval(key, shown, sweep, spelled)
    try:
        texts = tuple(dict.fromkeys(islice(override.sweep_string_iterator(), _MAX_CHOICES + 1)))
    except (HydraException, ValueError) as error:
        raise UserError(f"{shown}: {one_line(error)}; a space is {WORDS}") from error
    if not texts or len(texts) > _MAX_CHOICES:
        many = f"more than {_MAX_CHOICES:,} values; tag(int,interval(a,b)) has any number" if texts else "no value"
        raise UserError(f"{shown} has {many}")
    if isinstance(sweep, RangeSweep) and len(texts) > 1:
        return _range(key, shown, texts, is_log="log" in sweep.tags, spelled=spelled)
    if sweep.tags:
        raise UserError(f"{shown}: tags are for intervals and ranges")
    return Parameter(key, texts, spelled=spelled)


def _interval(key: str, shown: str, sweep: IntervalSweep, spelled: str) -> Parameter:
    low, high, is_log = sweep.start, sweep.end, "log" in sweep.tags
    assert low is not None
    assert high is not None
    if not (low < high and math.isfinite(high - low)):
        raise UserError(f"{shown}: an interval has two finite ends, the lower one first")
    if is_log and low <= 0:
        raise UserError(f"{shown}: with log both ends must be above 0")
    is_int = "int" in sweep.tags or (isinstance(low, int) and isinstance(high, int))  # the latter of int(interval())
    if is_int and (low != int(low) or high != int(high)):
        raise UserError(f"{shown}: with int both ends must be whole numbers")
    return Parameter(key, (), low, high, is_int=is_int, is_log=is_log, spelled=spelled)


def _range(key: str, shown: str, texts: tuple[str, ...], *, is_log: bool, spelled: str) -> Parameter:
    is_int = all(text.lstrip("-").isdecimal() for text in texts)
    if not is_int:  # Hydra says 0.30000000000000004
        texts = tuple(dict.fromkeys(repr(float(f"{float(text):.12g}")) for text in texts))
        if len(texts) == 1:
            raise UserError(f"{shown}: its values are the same to 12 digits; make the step larger")
    numbers = sorted(map(Decimal, texts))
    step = numbers[1] - numbers[0]
    if is_log and (not is_int or step != 1 or numbers[0] <= 0):
        raise UserError(f"{shown}: with log a range is of whole numbers above 0, and its step is 1")
    # Computed from the step: of a range that is no multiple of it, Optuna would leave out the end.
    low, high = float(numbers[0]), float(numbers[0] + (len(numbers) - 1) * step)
    return Parameter(key, texts, low, high, float(step), is_int=is_int, is_log=is_log, spelled=spelled)
