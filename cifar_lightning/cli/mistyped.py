"""Arguments that Hydra cannot read, told in one line with what to type instead."""

import os
import re
import shlex
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from cifar_lightning.config.overrides import PATHS, argument
from cifar_lightning.config.schema import groups_of, keys_of
from cifar_lightning.errors import UserError, shortened

_CHECKPOINTS = (".ckpt", ".onnx", ".pt2")
_OTHER_KEYS = {"predict": "images", "compare": "runs", "search": "study"}
"""What a path that is no checkpoint is for, by the name of the entry's config."""


def refuse_mistyped(overrides: Sequence[str], config_name: str) -> None:
    """Refuse arguments whose mistake would otherwise be told as another: a key as missing, a file as absent.

    Args:
        overrides: As typed.
        config_name: Name of the entry's config.

    Raises:
        UserError: If there is one.
    """
    for number, override in enumerate(overrides):
        key, equals, value = override.partition("=")
        if equals and key != key.rstrip():
            raise UserError(_spaced(override, f"{key.rstrip()}={value.strip()}"))
        if _has_no_key(override):
            raise UserError(_without_key(overrides, number, config_name))
        if key in PATHS and not value.startswith(("'", '"')) and (fault := _placeholder(override)):
            raise UserError(fault)


def unreadable(override: str, message: str) -> str:
    """What is wrong with an override whose syntax is not Hydra's.

    Args:
        override: As Hydra got it.
        message: What Hydra says; most of it is for the authors of its grammar.
    """
    if fault := _placeholder(override):
        return fault
    if override.endswith(","):
        return f"{override}: the comma at the end is too much: {shlex.quote(override.rstrip(', '))}"
    found = re.search(r" while evaluating '(.*)': (.*)", message)
    reason = f" ({found[1]}: {found[2]})" if found else ""
    return (
        f"cannot read {override!r}: a value with any of = , ( ) [ ] {{ }} < > or quotes, or with letters beyond A to "
        f"Z, wants quotes around it, such as 'key=\"value\"'{reason}"
    )


def unswept(error: Exception, config_name: str, *, sweeps: bool) -> str | None:
    """What to type where several values are given to a command that runs once; None for other errors.

    Args:
        error: What Hydra raised.
        config_name: Name of the entry's config.
        sweeps: Whether the entry can run several jobs.
    """
    found = re.match(r"\s*(Ambiguous value for argument|Sweep parameters) '(.*)'", str(error))
    if found is None:
        return None
    override = found[2]
    key, _, value = override.partition("=")
    is_list = found[1].startswith("Ambiguous")  # not a sweep that a function such as range() makes
    as_list = f"; a list is {shlex.quote(f'{key}=[{value}]')}" if is_list else ""
    if not sweeps:
        return f"{override}: {config_name}.py does one thing at a time{as_list}"
    swept = f"python {config_name}.py -m {shlex.quote(override)}"
    return f"{override}: several values are a sweep; add -m, as in {swept}{as_list}"


def _has_no_key(override: str) -> bool:
    return override.startswith("=") or ("=" not in override and not override.startswith("~"))


def _spaced(typed: str, meant: str) -> str:
    return f"{typed}: no spaces around =: {shlex.quote(meant)}"


def _placeholder(override: str) -> str | None:
    """What to do about ``<time>``, which examples have in the place of a name; None where there is such a path."""
    key, _, value = override.partition("=")
    found = re.match(r"[^<>]*<([^<>/]+)>[^/]*", value)
    if found is None or os.path.lexists(found[0]):
        return None
    kind = "the name of a folder" if key in PATHS else "a value"
    return f"{override}: <{found[1]}> stands for {kind}: type that in its place"


def _without_key(overrides: Sequence[str], number: int, config_name: str) -> str:
    """What to type instead of an argument without a key, which is the first such one."""
    override, before = overrides[number], overrides[number - 1] if number else ""
    following = list(takewhile(_has_no_key, overrides[number:]))
    key, _, value = before.partition("=")
    is_list = key in ("images", "runs") or (key, config_name) == ("ckpt", "compare")
    if is_list and (value or len(following) > 1) and not value.endswith(","):  # such as images=a.jpg b.jpg, or *.jpg
        typed = shortened(argument(key, [value, *following] if value else following), 200)
        return f"{before} {override}: several values are a list: {typed}"
    if found := re.search(r"(?<!\S)([\w./@]+)(?: = ?|= )([^\s=]+)(?!\S)", " ".join(overrides)):
        return _spaced(found[0], f"{found[1]}={found[2]}")
    if value.endswith(","):
        typed = f"{before}{''.join(following)}"
        return f"{before} {shortened(' '.join(following), 200)}: no spaces after a comma: {shlex.quote(typed)}"
    shown = repr(shortened(override, 200))
    if override.partition(".")[0] in {*keys_of(config_name), *groups_of(config_name)}:
        return f"{shown} has no value: a key is set as {override}=VALUE, and --help lists what there is"
    if (meant := _meant(override, config_name)) is not None:
        return f"{shown} has no key: did you mean {meant}?"
    return f"{shown} has no key: a key is set as key=value, and --help lists the keys"


def _meant(path: str, config_name: str) -> str | None:
    """An argument with the key that a path may be for; None where it does not look like a path, or for none."""
    if not os.path.lexists(path) and not re.search(r"[./]", path):
        return None
    is_checkpoint = path.endswith(_CHECKPOINTS)
    if config_name == "train":
        return _meant_for_training(Path(path)) if is_checkpoint else None
    if is_checkpoint and config_name == "compare":
        return argument("ckpt", [path, "OTHER"])
    if is_checkpoint and config_name != "search":
        return argument("ckpt", path)
    return argument(_OTHER_KEYS.get(config_name, "ckpt"), path)


def _meant_for_training(checkpoint: Path) -> str:
    """The run of a checkpoint, to be resumed; or the checkpoint as a start, where it is in no run's folder."""
    if checkpoint.parent.name == "checkpoints":
        return argument("resume", checkpoint.parent.parent)
    return argument("init", checkpoint)
