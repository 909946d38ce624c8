"""Plain values, texts and paths as they are typed on the command line."""

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import HydraException

from cifar_lightning.errors import UserError

PATHS = (
    *("output_dir", "resume", "init", "ckpt", "images", "other_sets", "runs", "study", "data.root"),
    *("hydra.run.dir", "hydra.sweep.dir"),
)
"""Keys whose value is a path."""

TEXTS = (*PATHS, "name", "split", "baseline", "data.name", "data.note")
"""Keys whose value is text, whatever it looks like."""

WHERE_AND_HOW = (
    "num_threads",
    "compile",
    "logger",
    "checkpoint",
    "callbacks.pictures",
    "data.root",
    "data.urls",
    "data.memory",
    "data.options",
    "data.eval_batch_size",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.benchmark",
    "trainer.profiler",
    "trainer.detect_anomaly",
    "trainer.inference_mode",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.num_sanity_val_steps",
)
"""Keys, each with those below it, that say where and how a run runs and what it shows, not what it computes."""


def quoted(value: str | float | list[Any] | None) -> str:
    """A plain value in Hydra's override grammar, where backslashes count as such except before quotes."""
    if isinstance(value, list):
        return "[" + ",".join(map(quoted, value)) + "]"
    if isinstance(value, str):
        return _in_quotes("'", value)
    return "null" if value is None else str(value).lower()


def _in_quotes(quote: str, text: str) -> str:
    escaped = re.sub(rf"(\\*)({quote}|\Z)", lambda found: found[1] * 2 + found[2].replace(quote, f"\\{quote}"), text)
    return f"{quote}{escaped}{quote}"


def argument(key: str, path: Path | str | Sequence[str]) -> str:
    """``key=path`` as it is typed into a POSIX shell: quoted for it and for Hydra, where the path wants it.

    Of a list of paths it is ``'key=[path,path]'``. There is no such form of a path with ``${``, whose value Hydra
    computes.
    """
    value = _typed(str(path)) if isinstance(path, Path | str) else f"[{','.join(map(_typed, path))}]"
    return shlex.quote(f"{key}={value}")


def _typed(text: str) -> str:
    if text.startswith("~") or text.lower() in ("auto", "null"):  # which would not be read as a path
        text = f"./{text}"
    if re.fullmatch(r"[\w./+-]+", text, re.ASCII):
        return text
    return _in_quotes('"', text)  # as shells take single quotes for their own


def as_texts(overrides: Iterable[str]) -> list[str]:
    """Overrides in which the value of a text key stays the text that is typed, and ``~`` is the home folder.

    Hydra by itself takes ``name=1e3`` for the number 1000.0, and an empty ``output_dir=`` for the working folder.

    Raises:
        UserError: If such a value is empty, or ``~`` stands for nothing known.
    """
    return [_as_text(override) for override in overrides]


def _as_text(override: str) -> str:
    key, equals, value = override.partition("=")
    if key not in TEXTS or not equals or (key == "data.note" and not value):
        return override
    is_there = key in PATHS and _is_there(value)
    # One, whatever is in it; a list otherwise. A baseline is overrides, with all their signs.
    is_pattern = key in ("images", "runs", "baseline") and not value.startswith(("[", "'", '"'))
    plain = r"[\w./~-]*" if is_there else r"[\w./~,-]*"
    if (is_there or is_pattern) and not re.fullmatch(plain, value, re.ASCII):
        # Such as IMG (1).jpg, of which Hydra would take the brackets for a call.
        return f"{key}={quoted(expanded(key, value))}"
    # A comma separates the jobs of a sweep; a value with brackets is one that Hydra computes.
    items = [value] if re.search(r"[\[\](){}]", value) else _ITEM.findall(value) or [value]
    return f"{key}={','.join(_item_as_text(key, item.strip()) for item in items)}"


def _is_there(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # of what no path can have
        return False


_ITEM = re.compile(r"""(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,])+""")
"""What stands between commas outside of quotes."""


def _item_as_text(key: str, text: str) -> str:
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    inner = text[1:-1] if is_quoted else text
    if not inner.strip() and key != "data.note":
        raise UserError(f"{key}= is empty: write {key}={'FOLDER' if key in PATHS else 'NAME'}, or leave it out")
    if is_from_home(key, inner):
        return quoted(expanded(key, inner))
    # Hydra's grammar has English letters alone. What it computes has brackets.
    is_foreign = not text.isascii() and not re.search(r"[\[\](){}\\]", text)
    if is_quoted:
        return text
    if is_foreign:
        return _in_quotes('"', text)
    return quoted(text) if _is_number_or_flag(f"{key}={text}") else text


def is_from_home(key: str, text: str) -> bool:
    """Whether a value begins with the home folder, as shells write it."""
    return key in PATHS and text.startswith("~")


def expanded(key: str, path: str) -> str:
    """A path in which a leading ``~`` is the home folder.

    Raises:
        UserError: If there is no such folder.
    """
    try:
        return str(Path(path).expanduser()) if is_from_home(key, path) else path
    except RuntimeError as error:
        raise UserError(
            f"{key}={path}: no home folder is known for {path.split('/')[0]}; write the whole path"
        ) from error


def _is_number_or_flag(override: str) -> bool:
    try:
        return isinstance(OverridesParser.create().parse_override(override).value(), int | float)
    except HydraException:  # of which Hydra tells later
        return False


def values(overrides: Iterable[str]) -> dict[str, Any]:
    """Plain values of overrides by key, as Hydra reads them; without those of which it will tell that it cannot."""
    found: dict[str, Any] = {}
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            continue
        value = override.value()
        found[override.key_or_group] = value.text if isinstance(value, QuotedString) else value
    return found
