"""Configuration: the schema of the top-level keys, and objects from config with errors that name the key."""

import difflib
import inspect
import re
import shlex
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cifar_lightning.hints import fits, words

CONF = Path(__file__).resolve().parent.parent / "conf"


class UserError(Exception):
    """What the user can mend: one line that names the key or file, what was allowed, what was got, and the fix."""


class RunError(Exception):
    """What went wrong while a run ran, with what is left of it and what to do, in one line."""


@dataclass
class TrainSchema:
    """Top-level keys of conf/train.yaml; below them the constructors' signatures are the schema."""

    name: str = MISSING
    seed: int = MISSING
    output_dir: str | None = None
    resume: str | None = None
    num_threads: int | None = None
    compile: Any = False
    label_smoothing: float = 0.0
    freeze: Any = MISSING
    tta: int = 0
    data: Any = MISSING
    normalize: Any = MISSING
    augment: Any = None
    model: Any = MISSING
    optimizer: Any = MISSING
    schedule: Any = None
    callbacks: Any = None
    logger: Any = None
    checkpoint: Any = MISSING
    trainer: Any = MISSING


@dataclass
class EvaluateSchema:
    """Top-level keys of conf/evaluate.yaml."""

    ckpt: str = MISSING
    split: str = "test"
    output_dir: str | None = None
    tta: int = 0
    num_threads: int | None = None
    compile: Any = False
    data: Any = MISSING
    trainer: Any = MISSING


def register() -> None:
    """Make the schemas and the resolvers of conf/ known to Hydra."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainSchema)
    store.store(name="evaluate_schema", node=EvaluateSchema)
    OmegaConf.register_new_resolver("first", _first, replace=True)
    OmegaConf.register_new_resolver("evaluate_dir", _evaluate_dir, replace=True)


def _first(*values: Any) -> Any:
    """The first value that is not null: ``${first:${output_dir},logs/default}``."""
    return next((value for value in values if value is not None), None)


def _evaluate_dir(ckpt: str, split: str) -> str:
    """Where evaluate.py writes: beside the checkpoints of a run folder, else into a new folder under logs/."""
    path = Path(ckpt)
    if path.parent.name == "checkpoints":
        return str(path.parent.parent / "evaluate" / (path.stem if split == "test" else f"{path.stem}-{split}"))
    return f"logs/evaluate/{datetime.now():%Y-%m-%d_%H-%M-%S_%f}"


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain dictionaries, lists, strings and numbers, with every interpolation resolved.

    Raises:
        UserError: If a required key has no value or an interpolation cannot be resolved.
    """
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} has no value: set it with {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from error
    assert isinstance(container, dict)
    return typing.cast("dict[str, Any]", container)


def one_line(error: BaseException) -> str:
    """An exception's message without its line breaks, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def quoted(value: str | float | list[Any] | None) -> str:
    """A plain value in Hydra's override grammar, where backslashes count as such except before quotes."""
    if isinstance(value, list):
        return "[" + ",".join(map(quoted, value)) + "]"
    if isinstance(value, str):
        escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", r"\'"), value)
        return f"'{escaped}'"
    return "null" if value is None else str(value).lower()


def argument(key: str, path: Path) -> str:
    """``key=path`` as it is typed: quoted for the shell and for Hydra, where the path wants it."""
    return shlex.quote(f'{key}="{path}"') if re.search(r"[^\w./+-]", str(path)) else f"{key}={path}"


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


def build(node: Any, key: str, **objects: Any) -> Any:
    """Call a node's ``_target_`` with its values and with ``objects``.

    Args:
        node: Plain config with ``_target_`` and keyword arguments.
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


def nearest(name: str, valid: typing.Iterable[str]) -> str:
    """A hint at the valid name nearest to a misspelt one, or at all of them."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else f"; allowed: {', '.join(valid)}"
