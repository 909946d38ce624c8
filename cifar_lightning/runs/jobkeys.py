"""Keys of the jobs of a sweep, by which a job that is there already is known without composing it.

A key is a hash of all that a job is composed from. Composition is deterministic, as configs are recorded and compared
with interpolations as they are written. So two jobs with one key have one config.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cifar_lightning import __version__
from cifar_lightning.checkpoint.trust import read_text
from cifar_lightning.checkpoint.write import write_durably
from cifar_lightning.config import schema
from cifar_lightning.config.overrides import PATHS
from cifar_lightning.errors import RunError
from cifar_lightning.files import own_folder
from cifar_lightning.runs.folder import CONFIG, names_in

KEY = Path(".hydra", "job.sha256")
"""Holds the key of a job, and the hash of the config that was recorded with it."""

_SOURCES = {("hydra", "pkg"), ("main", "file"), ("command-line", "file"), ("schema", "structured")}
"""Where configs come from, each with its kind: Hydra itself, conf/, ``--config-dir`` and ``config.schema``."""

_MAX_FILES = 1_000
"""More than a folder of configs has. One with more is not read through for each job."""


def common_key(hydra: Any) -> str | None:
    """A hash of what the jobs of a sweep are composed from, but for their own overrides.

    Args:
        hydra: The ``hydra`` node of the sweep's config, or of a job's.

    Returns:
        The hash; None where something else may count too, such as the files of ``hydra.searchpath``.
    """
    parts = [__version__, hydra.runtime.version, hydra.job.config_name, *hydra.overrides.hydra]
    try:
        parts.append(read_text(Path(schema.__file__)))
        for source in hydra.runtime.config_sources:
            if (source.provider, source.schema) not in _SOURCES:
                return None
            parts += [source.provider, *(_texts(source.path) if source.schema == "file" else ())]
    except (OSError, ValueError):
        return None
    return None if any(map(_looks_elsewhere, parts)) else _hash(parts)


def job_key(common: str | None, overrides: Iterable[str]) -> str | None:
    """The key of a job.

    Args:
        common: See ``common_key``.
        overrides: The job's own, in their order.

    Returns:
        The key; None where it would not tell all. With ``resume`` overrides of another run may come before these.
    """
    parts = list(overrides)
    keys = [override.partition("=")[0] for override in parts]
    choices = [override for key, override in zip(keys, parts, strict=True) if key not in PATHS]
    return (
        None if common is None or "resume" in keys or any(map(_looks_elsewhere, choices)) else _hash([common, *parts])
    )


def _looks_elsewhere(text: str) -> bool:
    """Whether an override or a file may choose by the environment, or a file out of its folder."""
    return "oc.env" in text or "../" in text


def _texts(folder: str) -> Iterator[str]:
    """Names and texts of the files that Hydra may read in a folder.

    Raises:
        ValueError: If the folder holds too many files, or links to other folders.
        OSError: If a file cannot be read.
    """
    num_files = 0
    for parent, folders, names in os.walk(folder):
        folders.sort()
        num_files += len(folders) + len(names)
        if num_files > _MAX_FILES or any(os.path.islink(Path(parent, name)) for name in folders):
            raise ValueError(folder)
        for path in (Path(parent, name) for name in sorted(names) if name.endswith(".yaml")):
            yield from (path.relative_to(folder).as_posix(), read_text(path))


def _hash(parts: list[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def record_key(folder: Path, key: str | None) -> None:
    """Write the key of a job beside its record, if it has one; where that fails, the job is composed again."""
    with suppress(OSError, ValueError, RunError):
        own_folder((folder / KEY).parent)
        if key is not None and _key_in(folder) != key:
            write_durably(folder / KEY, f"{key} {_hash([read_text(folder / CONFIG)])}\n".encode())


def _key_in(folder: Path) -> str | None:
    """The key of the job in a folder; None if none is recorded, or the config has changed since."""
    try:
        key, config = read_text(folder / KEY).split()
        return key if config == _hash([read_text(folder / CONFIG)]) else None
    except (OSError, ValueError):
        return None


class JobKeys:
    """The jobs in the folder of a sweep, by their keys.

    Args:
        sweep: The folder, which is read once.
    """

    def __init__(self, sweep: Path) -> None:
        self._sweep = sweep
        self._keys = {name: key for name in names_in(sweep) if (key := _key_in(sweep / name)) is not None}
        self._names = {key: name for name, key in reversed(self._keys.items())}

    @property
    def folder(self) -> Path:
        """The folder of the sweep."""
        return self._sweep

    def folder_of(self, key: str, own: str) -> Path | None:
        """The folder that holds a job, the named one first; None if none does."""
        name = own if self._keys.get(own) == key else self._names.get(key)
        return None if name is None else self._sweep / name
