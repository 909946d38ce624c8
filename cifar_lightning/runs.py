"""Run folders: whose they are, what was asked of the run in them, and what going on in one takes."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning.checkpoint import read_state
from cifar_lightning.config import CONF, UserError, argument, plain, quoted
from cifar_lightning.gate import check_values, read_text
from cifar_lightning.saving import sweep_temporary, write_durably

CONFIG = Path(".hydra", "config.yaml")
OVERRIDES = Path(".hydra", "overrides.yaml")
LAST = Path("checkpoints", "last.ckpt")
METRICS = "metrics.json"

MAY_CHANGE = (
    *("output_dir", "resume", "num_threads", "compile", "tta", "logger", "callbacks.pictures", "checkpoint"),
    *("data.root", "data.urls", "data.eval_batch_size"),
    *(
        f"trainer.{name}"
        for name in (
            *(
                "accelerator",
                "devices",
                "benchmark",
                "profiler",
                "detect_anomaly",
                "inference_mode",
                "log_every_n_steps",
            ),
            *("enable_progress_bar", "enable_model_summary", "num_sanity_val_steps", "limit_test_batches"),
        )
    ),
)
"""Keys that may differ when a run goes on: where and how it runs and what it shows, not what it computes."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder, for this process alone; the system lets go of it when the process ends, however it ends.

    Raises:
        UserError: If another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / ".lock"
        lock = FileLock(path, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"output_dir={folder} is in use by {_owner(path)}: wait until it has ended, or name another folder"
        ) from error
    except OSError as error:
        raise UserError(f"output_dir={folder} cannot be used: {error}") from error
    try:
        path.write_text(str(os.getpid()))
        for place in (folder, folder / CONFIG.parent, folder / LAST.parent):
            sweep_temporary(place)
        yield
    finally:
        lock.release()


def _owner(path: Path) -> str:
    try:
        return f"process {int(path.read_text())}"
    except (OSError, ValueError):
        return "another process"


def refuse_used(folder: Path) -> None:
    """Raise UserError if a folder holds a run already that could be lost."""
    if any((folder / "checkpoints").glob("*.ckpt")) or ((folder / CONFIG).exists() and (folder / METRICS).exists()):
        raise UserError(
            f"output_dir={folder} holds a run already: go on with it by {argument('resume', folder)}, or name another "
            "folder, so that neither is lost"
        )


def record(folder: Path, cfg: DictConfig) -> None:
    """Write into a run's ``.hydra`` what it was asked to do: the config, and under Hydra the overrides and its own."""
    texts = {CONFIG: OmegaConf.to_yaml(cfg)}
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        texts |= {OVERRIDES: OmegaConf.to_yaml(hydra.overrides.task), CONFIG.with_name("hydra.yaml"): _hydra_yaml()}
    for name, text in texts.items():
        write_durably(folder / name, text.encode())


def _hydra_yaml() -> str:
    return OmegaConf.to_yaml(OmegaConf.create({"hydra": HydraConfig.instance().cfg.hydra}))  # type: ignore[union-attr]


def overrides_to_resume(resume: str, typed: list[str]) -> list[str]:
    """The overrides of a run that is to go on: those it was started with, then those that are typed now.

    Args:
        resume: The run's folder; or ``auto``, with ``output_dir`` typed, for what may hold none yet.
        typed: Overrides of the command line.

    Raises:
        UserError: If the folder holds no run, or one whose overrides would have to be typed again.
    """
    values = {_key(override): override.partition("=")[2] for override in typed}
    output_dir = values.get("output_dir", "null").strip("'\"")
    folder = Path(output_dir if resume == "auto" else resume)
    if resume == "auto" and not (folder / LAST).exists():
        return typed
    if output_dir not in ("null", "") and Path(output_dir) != folder:
        raise UserError(f"output_dir={output_dir}: a run goes on in its own folder, {folder}; leave output_dir out")
    recorded = _recorded_overrides(folder, typed)
    if "trainer.max_epochs" not in values and (folder / LAST).exists():  # an earlier resumption may have raised it
        recorded.append(
            f"trainer.max_epochs={quoted(read_state(folder / LAST)['config']['trainer'].get('max_epochs'))}"
        )
    typed = [override for override in typed if _key(override) not in ("output_dir", "resume")]
    return [*recorded, *typed, f"output_dir={quoted(str(folder))}", f"resume={quoted(resume)}"]


def _recorded_overrides(folder: Path, typed: list[str]) -> list[str]:
    """The overrides a run was started with, without those that are typed again.

    A run's folder may come from anyone. So a recorded override only chooses among the files of conf/ and sets plain
    values: one that names a class, adds a key, speaks to Hydra or has something looked up is refused.

    Raises:
        UserError: If the folder has no such record, or an override in it would have to be typed again.
    """
    path = folder / OVERRIDES
    try:
        recorded = yaml.safe_load(read_text(path))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"resume={folder} is no folder of a run: {path} cannot be read") from error
    if not isinstance(recorded, list) or not all(isinstance(override, str) for override in recorded):
        raise UserError(f"resume={folder}: {path} is no list of overrides")
    again = {_key(override) for override in typed}
    kept = [override for override in recorded if _key(override) not in again | {"output_dir", "resume"}]
    for override in kept:
        if not _is_plain(override):
            raise UserError(
                f"resume={folder}: it was started with {override}, which is not taken from a file; type it again if "
                "you trust it"
            )
    return kept


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _is_plain(text: str) -> bool:
    """Whether an override only chooses a file of conf/, or gives an existing key a plain value."""
    try:
        [override] = OverridesParser.create().parse_overrides([text])
    except HydraException:
        return False
    key, value = override.key_or_group, override.value()
    if "\\" in text or override.package is not None or override.type is not OverrideType.CHANGE:
        return False
    if (CONF / key).is_dir():  # no path that leads out of conf/
        return isinstance(value, str) and re.fullmatch(r"[\w-]+", value) is not None
    # A logger's own values may be paths, which it writes to; and no address is fetched from because a file names it.
    return not key.startswith(("hydra", "logger", "data.urls")) and "_target_" not in key and _is_plain_value(value)


def _is_plain_value(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain_value, value))
    text = value.text if isinstance(value, QuotedString) else value
    return text is None or isinstance(text, int | float) or (isinstance(text, str) and "${" not in text)


def place_of_job(cfg: DictConfig) -> Path:
    """The folder for one job of a sweep: the one that holds this very job already, if the sweep has been run before.

    Raises:
        UserError: If the job's own folder holds a job with another config.
    """
    own = Path(cfg.output_dir)
    for path in sorted(own.parent.glob(f"*/{CONFIG}")):
        if _same_job(cfg, path):
            return path.parent.parent
    refuse_used(own.parent)
    if (own / CONFIG).exists():
        raise UserError(
            f"output_dir={own.parent} holds a run already, whose job {own.name} has another config: name another folder"
        )
    return own


def _same_job(cfg: DictConfig, path: Path) -> bool:
    """Whether a recorded config asks for the same run, wherever it is kept."""
    try:
        text = read_text(path)
        check_values(path, yaml.safe_load(text))  # which omegaconf would copy wherever it is referred to
        recorded = OmegaConf.create(text)
        return isinstance(recorded, DictConfig) and _placeless(recorded) == _placeless(cfg)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException, UserError):
        return False  # not written by a job of ours


def _placeless(cfg: DictConfig) -> dict[str, Any]:
    cfg = cfg.copy()
    with open_dict(cfg):
        cfg.output_dir, cfg.resume = "", None
    return plain(cfg)


def finished_metrics(folder: Path) -> dict[str, Any] | None:
    """The metrics of a run that has ended in a folder; None where it has not."""
    try:
        metrics = json.loads(read_text(folder / METRICS))
    except (OSError, ValueError, RecursionError):
        return None
    return metrics if isinstance(metrics, dict) else None


def refuse_changes(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a run whose config says something else than it did.

    Args:
        folder: The run's folder.
        before: Config in its checkpoint.
        now: Config it is to go on with.

    Raises:
        UserError: If a value differs that decides what is computed.
    """
    old, new = flattened(before), flattened(now)
    for key in ("model.num_classes", "model.in_channels"):  # which the data decide
        old.pop(key, None), new.pop(key, None)
    plain_end = not (now["schedule"] or now["freeze"] or "lookahead" in (now["callbacks"] or {}))
    may_change = (*MAY_CHANGE, "trainer.max_epochs") if plain_end else MAY_CHANGE
    changed = [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and (key in old or new[key] is not False)  # an option that the checkpoint does not know yet may be off
        and not key.startswith(tuple(f"{name}." for name in may_change))
        and key not in may_change
    ]
    if changed:
        raise UserError(
            f"resume={folder}: the run would not be the same; {'; '.join(changed)}. Leave that as it was, or start "
            "a run of its own"
        )


def flattened(node: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys and plain values of nested dictionaries."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
