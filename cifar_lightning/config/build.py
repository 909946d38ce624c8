"""Objects from plain config, with errors that name the key."""

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from cifar_lightning.config.resolve import AUTO, Section, Settings, as_plain
from cifar_lightning.errors import UserError, nearest, one_line
from cifar_lightning.typehints import fits, words


@contextmanager
def blame(key: str, node: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turn the errors that a user's value can cause into a UserError that names its key.

    Args:
        key: Where the value stands in the config.
        node: The config there. A message that begins with one of its keys, as a constructor's "lr must be ..." does,
            is given that key's full name.
    """
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, InstantiationException) as error:
        message = one_line(error)
        separator = "." if node and message.partition(" ")[0] in node else ": "
        raise UserError(f"{key}{separator}{message}") from error


@dataclass(frozen=True)
class Pieces:
    """What the sections of a config choose, as far as plain values make it; no data are read.

    Attributes:
        data: The data module, without its augmentation.
        optimizer: ``net -> Optimizer``.
        schedule: Progress -> factor; None where the config has none.
        callbacks: The callbacks chosen by name.
        loggers: The loggers chosen by name.
    """

    data: Any
    optimizer: Callable[..., Any]
    schedule: Any | None
    callbacks: list[Any]
    loggers: list[Any]


def build_pieces(config: Settings) -> Pieces:
    """All that a config chooses, in one go; what it says of the augmentation is checked, too.

    Raises:
        UserError: If a section names an argument or value that its target refuses.
    """
    build_augment(config.augment)
    return Pieces(
        data=build(config.data, "data", seed=config.seed),
        optimizer=build_partial(config.optimizer, "optimizer"),
        schedule=build(config.schedule, "schedule") if config.schedule else None,
        callbacks=_build_named(config.callbacks, "callbacks"),
        loggers=_build_named(config.logger, "logger"),
    )


def build_augment(section: Section | None) -> Any | None:
    """The augmentation of a config; with a mean of 0.5 where that is still to be measured."""
    if not section:
        return None
    return build({**section, "mean": [0.5]} if section.get("mean") == AUTO else section, "augment")


def _build_named(section: Section | None, key: str) -> list[Any]:
    return [build(node, f"{key}.{name}") for name, node in (section or {}).items() if node is not None]


def build(node: Any, key: str, **objects: Any) -> Any:
    """Call a node's ``_target_`` with its values and with ``objects``.

    Args:
        node: A section of the config with ``_target_`` and keyword arguments.
        key: The node's place in the config, for messages.
        objects: Further keyword arguments that no config can hold. They go in at the call, past Hydra, which would
            turn dataclasses among them into configs.

    Raises:
        UserError: If an argument is unknown, has the wrong type or is refused by the target.
    """
    factory = build_partial(node, key)
    with blame(key, node):
        return factory(**objects)


def build_partial(node: Any, key: str) -> Callable[..., Any]:
    """A node's ``_target_`` with its values bound, yet to be called; see ``build``."""
    node = as_plain(node)
    _check_arguments(node, key)
    with blame(key):
        return instantiate(dict(node), _partial_=True, _convert_="all")


def _check_arguments(node: Any, key: str) -> None:
    """Hold a node's values against the signature of its ``_target_``."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(f"{key} must be one of the choices in conf/{key.replace('.', '/')}, got {node!r}")
    if not isinstance(node["_target_"], str):
        raise UserError(f"{key}._target_ must be the dotted name of a class or function, got {node['_target_']!r}")
    with blame(f"{key}._target_"):
        target = get_object(node["_target_"])
        parameters = inspect.signature(target).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    hints = _type_hints(target)
    for name, value in node.items():
        if name.startswith("_"):
            continue
        if name not in parameters and not takes_any:
            raise UserError(f"{key}.{name} is not an argument of {node['_target_']}{nearest(name, parameters)}")
        if isinstance(value, Mapping) and "_target_" in value:
            _check_arguments(value, f"{key}.{name}")
        elif name in hints and not fits(value, hints[name]):
            raise UserError(f"{key}.{name} must be {words(hints[name])}, got {value!r}")


def _type_hints(target: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):  # hints that only a type checker can read
        return {}
