"""What ``resume=`` puts before the command line: the overrides that the run was started with."""

import os
import re
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType, QuotedString
from hydra.errors import HydraException

from cifar_lightning.checkpoint.format import read_state
from cifar_lightning.checkpoint.trust import read_text
from cifar_lightning.config.overrides import quoted, values
from cifar_lightning.config.schema import CONF
from cifar_lightning.errors import UserError, shortened
from cifar_lightning.runs.folder import LAST, OVERRIDES


def resume_prelude(typed: list[str]) -> list[str]:
    """The overrides of the run that is to be resumed, then those that are typed now; without ``resume=`` the latter.

    Raises:
        UserError: If the folder holds no run, or one whose overrides would have to be typed again.
    """
    given = values(typed)
    resume = given.get("resume")
    if not isinstance(resume, str):
        return typed
    if resume == "auto" and "output_dir" not in given:
        raise UserError("resume=auto resumes the run in output_dir, if there is one: set output_dir=FOLDER too")
    return overrides_to_resume(resume, typed)


def overrides_to_resume(resume: str, typed: list[str]) -> list[str]:
    """The overrides of a run that is to be resumed: those it was started with, then those that are typed now.

    Args:
        resume: The run's folder; or ``auto``, with ``output_dir`` typed, for what may hold none yet.
        typed: Overrides of the command line.

    Raises:
        UserError: If the folder holds no run, or one whose overrides would have to be typed again.
    """
    given = values(typed)
    output_dir = given.get("output_dir")
    folder = Path(str(output_dir) if resume == "auto" else resume)
    has_checkpoint = os.path.exists(folder / LAST)
    if resume == "auto" and not has_checkpoint:
        return typed
    if output_dir is not None and Path(str(output_dir)) != folder:
        raise UserError(f"output_dir={output_dir}: a run is resumed in its own folder, {folder}; leave output_dir out")
    recorded = _recorded_overrides(folder, typed)
    if "trainer.max_epochs" not in given and has_checkpoint:  # an earlier resumption may have raised it
        recorded.append(
            f"trainer.max_epochs={quoted(read_state(folder / LAST)['settings']['trainer'].get('max_epochs'))}"
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
                f"resume={folder}: it was started with {shortened(override, 200)}, which is not taken from a file; "
                "type it again if you trust it"
            )
    return kept


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _is_plain(text: str) -> bool:
    """Whether an override only chooses a file of conf/, or gives an existing key a plain value."""
    try:
        [override] = OverridesParser.create().parse_overrides([text])
    except (HydraException, RecursionError):  # the latter of thousands of brackets
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
