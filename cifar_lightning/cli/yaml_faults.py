"""What is wrong with a file of conf/, or of a folder like it, in one line: the file, the line, the column."""

import codecs
import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from cifar_lightning.errors import one_line


def syntax_fault(error: yaml.YAMLError) -> str:
    """What YAML's own error says, with the place first."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return one_line(error)
    fault = str(getattr(error, "problem", None) or getattr(error, "context", None))
    hint = "; YAML takes spaces, no tabs" if "'\\t'" in fault else ""
    return f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: {one_line(ValueError(fault))}{hint}"


def encoding_fault(folders: Iterable[Path]) -> str | None:
    """The first file of the folders, or of their groups, that is not UTF-8, and where; None if all are.

    Hydra reads them and says of what it cannot decode neither file nor line.
    """
    for folder in folders:
        for path in (*sorted(folder.glob("*.yaml")), *sorted(folder.glob("*/*.yaml"))):
            try:
                content = path.read_bytes()
                content.decode("utf-8")
            except UnicodeDecodeError as error:
                before = content[: error.start]
                line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
                return f"{path}, line {line}, byte {column}: it is not UTF-8 ({error.reason}); save it as UTF-8"
            except OSError:
                continue
    return None


def content_fault(error: Exception, folders: Iterable[Path]) -> str | None:
    """Why a file that can be read does not fit into the config; None where Hydra's own words are all there is."""
    found = re.match(r"In '([^']+)': \w+ raised while composing config", str(error))
    if found is None:
        return None
    name = found[1]
    path = next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)
    if path is None:
        return None
    content = path.read_bytes()
    group = name.partition("/")[0]
    if content.startswith(codecs.BOM_UTF8):
        return f"{path} begins with a byte order mark, which hides its first line: save it as UTF-8 without one"
    loaded = yaml.safe_load(content)
    if loaded is not None and not isinstance(loaded, dict):
        kind = "list" if isinstance(loaded, list) else "value"
        return f"{path} must hold keys and values, such as seed: 1, got a {kind}"
    if not re.match(rb"\s*#\s*@package\s", content) and f"Key '{group}' not in" in str(error):
        return f"{path}: its first line must be: # @package _global_"
    return None
