"""What a study was begun with, in its folder: another search in the same folder is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_lightning.checkpoint.trust import read_text
from cifar_lightning.checkpoint.write import write_durably
from cifar_lightning.config.overrides import WHERE_AND_HOW
from cifar_lightning.config.recipe import is_below, recipe
from cifar_lightning.config.resolve import flattened
from cifar_lightning.config.schema import SearchSettings
from cifar_lightning.errors import UserError, listed, one_line, printable, shortened
from cifar_lightning.files import own_folder
from cifar_lightning.locks import held
from cifar_lightning.runs.folder import names_in, refuse_used
from cifar_lightning.search.journal import JOURNAL
from cifar_lightning.search.space import Space, read_space

RECORD = "study.json"
_LOCK = ".cifar-lightning.begin.lock"
_OF_A_COMMAND = (*WHERE_AND_HOW, "output_dir", "resume")
_FREE = ("search.log", _LOCK)
"""What a folder may hold in which a study is begun."""


def begin(settings: SearchSettings, space: Space, cfg: DictConfig) -> None:
    """Begin a study in its folder, or see that the one there is the same; both by one process at a time.

    Args:
        settings: Of the search.
        space: What is searched.
        cfg: Of train.py for the first combination, as files of conf/ have it now.

    Raises:
        UserError: If the folder holds something else, or cannot be written.
    """
    assert settings.study is not None
    folder = Path(settings.study)
    record = _record(settings, space, cfg)
    try:
        own_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder / _LOCK, waits=lambda owner: None):
            if (folder / RECORD).exists() or (folder / JOURNAL).exists():
                _refuse_other(folder, record)
                return
            refuse_used(folder)
            if found := [name for name in names_in(folder) if name not in _FREE]:
                raise UserError(f"study={folder} holds {listed(found, at_most=3)}, and no study: name another folder")
            write_durably(folder / RECORD, (json.dumps(record, indent=2) + "\n").encode())
    except (OSError, ValueError) as error:  # the latter of a path that no system takes
        raise UserError(f"study={folder} cannot be used: {one_line(error)}") from error


def has_begun(folder: Path) -> bool:
    """Whether a study is there."""
    return (folder / RECORD).is_file()


def _record(settings: SearchSettings, space: Space, cfg: DictConfig) -> dict[str, Any]:
    config = flattened(OmegaConf.to_container(cfg))
    return {
        "format": 1,
        "space": {parameter.key: parameter.spelled for parameter in space.parameters},
        "overrides": list(space.fixed),
        "seed": int(cfg.seed),
        "seeds": settings.seeds,
        "is_grid": settings.sampler == "grid",
        "config": {key: value for key, value in config.items() if not is_below(key, _OF_A_COMMAND)},
    }


def _refuse_other(folder: Path, new: Mapping[str, Any]) -> None:
    try:
        old = json.loads(read_text(folder / RECORD))
        if not isinstance(old, dict) or old.get("format") != 1 or not isinstance(old["space"], dict):
            raise ValueError("it is no record of a study")
        changes = _changes(old, new)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UserError) as error:
        raise UserError(
            f"study={folder}: {folder / RECORD} cannot be read ({one_line(error)}): search in another folder"
        ) from error
    if changes:
        raise UserError(
            f"study={folder} holds another search, with {listed(changes, at_most=4)}: its trials cannot be compared "
            "with these; leave that as it was, or name another folder"
        )


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What is asked for that was not, in words."""
    named = [{key: str(value) for key, value in record["space"].items()} for record in (old, new)]
    spaces = [{one.key: one for one in read_space(each, []).parameters} for each in named]
    changed = [key for key in sorted({*named[0], *named[1]}) if spaces[0].get(key) != spaces[1].get(key)]
    fixed = [recipe(record["overrides"]) for record in (old, new)]
    changed_fixed = [
        key
        for key in sorted({*fixed[0], *fixed[1]} - {*changed})
        if not is_below(key, WHERE_AND_HOW) and _normal(fixed[0], key) != _normal(fixed[1], key)
    ]
    spelled = [{key: value.spelled for key, value in each.items()} for each in fixed]
    found = [_change(key, *named) for key in changed] + [_change(key, *spelled) for key in changed_fixed]
    found += [_change(key, old, new) for key in ("seed", "seeds") if old[key] != new[key]]
    if old["is_grid"] != new["is_grid"]:
        found.append(f"sampler={'grid' if old['is_grid'] else 'tpe or random'}")
    return found or [f"{change}, in a file of conf/" for change in _changed_files(old, new)]


def _changed_files(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs although the same is asked for: a file that is named by it has been edited."""
    configs = [record.get("config", new["config"]) for record in (old, new)]  # a study may be older than this entry
    keys = sorted({*configs[0], *configs[1]})
    missing = object()
    return [_change(key, *configs) for key in keys if configs[0].get(key, missing) != configs[1].get(key, missing)]


def _normal(values: Mapping[str, Any], key: str) -> Any:
    return values[key].normal if key in values else None


def _change(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    shown = [shortened(printable(str(values[key])), 60) if key in values else "nothing" for values in (old, new)]
    return f"{key}={shown[0]} (now {shown[1]})"
