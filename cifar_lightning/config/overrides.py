"""Plain values and paths as they are typed on the command line."""

import re
import shlex
from pathlib import Path
from typing import Any


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
