"""Checks of plain values, as in configs and checkpoints, against type hints."""

import inspect
import math
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal, Union


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value fits a type hint; numbers must be finite, and True is not a number.

    >>> fits(1, float), fits("1", float), fits(True, int), fits([1, 2], tuple[int, int]), fits(None, int | None)
    (True, False, False, True, True)
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(argument) and value == argument for argument in arguments)
    if origin in (list, tuple, Sequence):
        if not isinstance(value, list | tuple):
            return False
        if origin is tuple and Ellipsis not in arguments:
            return len(value) == len(arguments) and all(map(fits, value, arguments))
        return all(fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint is None or hint is type(None):
        return value is None
    if hint in (int, float):
        # int first: isfinite overflows for integers above the largest float
        return type(value) is int or (hint is float and isinstance(value, float) and math.isfinite(value))
    if hint in (str, bool):
        return isinstance(value, hint)
    # A config cannot hold other classes, so a value fits another member of the union or none. Any other kind of hint
    # accepts all values here; the function that is called checks them.
    return not inspect.isclass(hint) or isinstance(value, hint)


def words(hint: Any) -> str:
    """Describe a type hint in words, for error messages."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        plain_ones = [argument for argument in arguments if typing.get_origin(argument) or argument in _WORDS]
        return " or ".join(dict.fromkeys(words(argument) for argument in plain_ones))
    if origin is Literal:
        return ", ".join(str(argument) for argument in arguments)
    if origin in (list, tuple, Sequence):
        return f"a list, each item {words(arguments[0])}"
    return _WORDS.get(hint, "a mapping" if origin is dict else str(hint))


_WORDS = {
    int: "a whole number",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    type(None): "null",
}
