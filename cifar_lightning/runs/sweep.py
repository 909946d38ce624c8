"""The jobs of a sweep: which folder holds one, and what refuses the whole sweep."""

import functools
import json
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.checkpoint.trust import check_values, read_text
from cifar_lightning.config.invocation import Invocation
from cifar_lightning.errors import SweepError, UserError
from cifar_lightning.files import own_folder
from cifar_lightning.runs.folder import CONFIG, names_in, refuse_used

_MAX_FAST_CHARACTERS = 20_000
"""More than a job's config has. Of longer texts the fast parser of YAML may make the stack of this process overflow."""


def folder_of_job(cfg: DictConfig, invocation: Invocation) -> Path:
    """The folder of one job: the one that holds this very job if the sweep has been run before, else its own.

    Args:
        cfg: The job's config, with its own folder as ``output_dir``.
        invocation: How the command was called.

    Raises:
        SweepError: If the sweep cannot be run: its folder holds another one, ``resume`` names a run, or a sweeper that
            optimises has no validation images.
    """
    if invocation.sweeper_optimises and cfg.data.val_size == 0:
        raise SweepError(
            "data.val_size must be above 0 for a sweeper that optimises val/acc, got 0; set it, such as to 5000"
        )
    if cfg.resume not in (None, "auto"):
        raise SweepError(
            f"resume={cfg.resume}: a sweep is resumed by its own command, with the same output_dir; leave resume out"
        )
    own = Path(cfg.output_dir)
    folder = _folder_that_holds(cfg, own) or own
    _refuse_link(folder)
    return folder


def _refuse_link(folder: Path) -> None:
    try:
        own_folder(folder)
    except OSError as error:
        raise SweepError(
            f"output_dir={folder.parent} cannot be used: {error}; name a folder that can be written with output_dir="
        ) from error


def placed(cfg: DictConfig, folder: Path) -> DictConfig:
    """A job's config with its folder, which it resumes if it has been there before."""
    resume = "auto" if (folder / CONFIG).exists() else None
    merged = OmegaConf.merge(cfg, {"output_dir": str(folder), "resume": resume})
    assert isinstance(merged, DictConfig)
    return merged


def refuse_other_job(cfg: DictConfig, own: Path) -> None:
    """Refuse a job whose folder, or that of its sweep, holds something else.

    Args:
        cfg: The job's config; ``output_dir`` and ``resume`` in it do not count.
        own: The folder that the job would be put into.

    Raises:
        SweepError: If that is so.
    """
    _refuse_link(own)
    if (own / CONFIG).exists() or _holds_a_run(own.parent):
        _folder_that_holds(cfg, own)


def _folder_that_holds(cfg: DictConfig, own: Path) -> Path | None:
    """The folder of this very job; None where it has none yet and its own is free.

    Raises:
        SweepError: If that is not free.
    """
    folder = _records(own.parent).folder_of(_identity(OmegaConf.to_container(cfg)), own.name)
    if folder is not None:
        return folder
    if (refusal := _holds_a_run(own.parent)) is not None:
        raise SweepError(str(refusal)) from refusal
    if (own / CONFIG).exists():
        raise SweepError(
            f"output_dir={own.parent} holds a run already, whose job {own.name} has another config: name another folder"
        )
    return None


def _holds_a_run(sweep: Path) -> UserError | None:
    try:
        refuse_used(sweep)
    except UserError as error:
        return error
    return None


class _Records:
    """What the jobs in the folder of a sweep have recorded. A record is read once, and again when it has changed.

    Args:
        sweep: The folder.
    """

    def __init__(self, sweep: Path) -> None:
        self._sweep = sweep
        self._read: dict[str, tuple[tuple[int, ...], str | None]] = {}  # by the name of the job's folder
        self._names: dict[str, str] = {}  # the reverse: in which folder a job has been seen

    def folder_of(self, job: str, own: str) -> Path | None:
        """The folder that holds a job; the named one is looked into first, as a sweep is mostly run again as it was."""
        likely = [own, *([self._names[job]] if job in self._names else [])]
        found = next((name for name in likely if self._job_in(name) == job), None)
        if found is None:
            found = next((name for name in names_in(self._sweep) if self._job_in(name) == job), None)
        return None if found is None else self._sweep / found

    def _job_in(self, name: str) -> str | None:
        path = self._sweep / name / CONFIG
        try:
            status = path.stat()
        except OSError:
            return None
        state = (status.st_mtime_ns, status.st_size, status.st_ino)
        if name not in self._read or self._read[name][0] != state:
            job = _recorded(path)
            self._read[name] = state, job
            if job is not None:
                self._names[job] = name
        return self._read[name][1]


_records = functools.cache(_Records)
"""Those of this process: each of 3,000 jobs would otherwise read 3,000 records."""


def _recorded(path: Path) -> str | None:
    """What a recorded config asks for; None if no job of this project has written it."""
    config = recorded(path)
    return _identity(config) if isinstance(config, dict) else None


def recorded(path: Path) -> Any:
    """The plain values of a record in a run's ``.hydra``, which may come from anyone; None if it holds none."""
    try:
        text = read_text(path)
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader) if len(text) < _MAX_FAST_CHARACTERS else yaml.SafeLoader
        values = yaml.load(text, loader)
        check_values(path, values)  # which would be copied wherever they are referred to
    except (OSError, ValueError, RecursionError, yaml.YAMLError, UserError):
        return None
    return values


def _identity(config: Any) -> str:
    """What a config asks for, wherever that is kept, with interpolations as they are written."""
    return json.dumps(_in_order({**config, "output_dir": None, "resume": None}))


def _in_order(value: Any) -> Any:
    if isinstance(value, dict):
        return [(repr(key), _in_order(value[key])) for key in sorted(value, key=repr)]
    return list(map(_in_order, value)) if isinstance(value, list | tuple) else value
