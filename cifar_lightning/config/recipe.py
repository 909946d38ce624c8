"""The recipe of a run: the overrides that decide what is computed, in one spelling each."""

import functools
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

from cifar_lightning.config.overrides import TEXTS, WHERE_AND_HOW

NO_PART = ("seed", "output_dir", "resume", "hydra")
"""Keys, each with those below it, that never make groups of runs."""

IF_DOUBLED = (*WHERE_AND_HOW, "tta", "name", "data.name", "data.note")
"""Keys likewise that make groups only where a seed would otherwise stand twice."""

_ESCAPED = re.compile(r"\\([\\()\[\]{}:=, \t])")
"""What Hydra escapes in the text of a sweep's jobs, such as a space."""

_MAX_PARSED = 2_000
"""Most characters of a value that Hydra's parser is asked about, which takes its time; a longer one is text."""


@dataclass(frozen=True)
class Value:
    """The value of an override.

    Attributes:
        normal: Equal for two spellings of one value.
        spelled: As it was typed.
    """

    normal: Hashable
    spelled: str


def recipe(overrides: Iterable[str]) -> dict[str, Value]:
    """Values of overrides by key, in the order of keys; the last one of a key counts, as for Hydra.

    >>> recipe(["seed=1", "optimizer.lr=1e-2"]) == recipe(["optimizer.lr=0.01"])
    False
    >>> [value.normal for value in recipe(["seed=1", "optimizer.lr=1e-2"]).values()]
    [0.01]
    """
    found = {}
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if not is_below(key, NO_PART):
            found[key] = Value(_normal(key, value), value)
    return dict(sorted(found.items()))


def seed_of(overrides: Iterable[str]) -> int | None:
    """The seed that overrides give; None where they give none."""
    typed = [override.removeprefix("seed=") for override in overrides if override.startswith("seed=")]
    value = _normal("seed", typed[-1]) if typed else None
    return value if type(value) is int else None


def is_below(key: str, keys: Iterable[str]) -> bool:
    """Whether a key is one of some, or below one; of Hydra's also a choice, such as hydra/launcher."""
    return any(key == one or key.startswith((f"{one}.", f"{one}/")) for one in keys)


@functools.lru_cache(100_000)
def _normal(key: str, text: str) -> Hashable:
    if key in TEXTS:
        return _unquoted(text)
    # Of the Trainer's arguments a whole number is a count and another one a share: 1 batch, or 1.0 of them.
    is_exact = key.startswith("trainer.")
    if re.fullmatch(r"[\w.+-]*", text, re.ASCII):
        return _hashable(_primitive(text), is_exact)
    if len(text) > _MAX_PARSED:
        return text
    try:
        return _hashable(OverridesParser.create().parse_override(f"key={text}").value(), is_exact)
    except (HydraException, RecursionError, ValueError):
        return text  # records may come from anyone: what Hydra cannot read equals only what is spelled the same


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1].replace(f"\\{text[0]}", text[0])
    return _ESCAPED.sub(r"\1", text)


def _primitive(text: str) -> Any:
    words = {"null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    if len(text) > 40:
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _hashable(value: Any, is_exact: bool) -> Hashable:
    """A value that equals that of another spelling: true is not 1, but 1.0 is, unless numbers are to be exact."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, bool) or value is None:
        return repr(value), "word"
    if isinstance(value, int | float):
        return (repr(value), "number") if is_exact or value != value else value
    if isinstance(value, Mapping):
        return tuple((repr(key), _hashable(part, is_exact)) for key, part in value.items())
    if isinstance(value, list | tuple):
        return tuple(_hashable(part, is_exact) for part in value)
    return str(value)
