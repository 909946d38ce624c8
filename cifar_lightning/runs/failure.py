"""What is left of a run that has failed: a file in its folder that says so, for whoever counts the runs of a sweep."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cifar_lightning.checkpoint.trust import read_text
from cifar_lightning.checkpoint.write import write_durably
from cifar_lightning.config.invocation import Invocation
from cifar_lightning.errors import RunError, SweepError, UserError, in_words
from cifar_lightning.files import own_folder
from cifar_lightning.runs.folder import CONFIG, claimed
from cifar_lightning.typehints import fits

FAILED = Path(".hydra", "failed.json")
"""Holds the overrides of a run and why it has failed, until it is started again."""


@contextmanager
def noted_failure(folder: Path, invocation: Invocation) -> Iterator[None]:
    """Have an error that ends a run noted in its folder.

    Not noted is what refuses a command before it is a run: the folder may hold another run.

    Args:
        folder: Of the run. It must not be held, as the lock is taken to write.
        invocation: How the command was called.
    """
    try:
        yield
    except SweepError:
        raise
    except Exception as error:
        if invocation.is_sweep or ((folder / CONFIG).exists() and not isinstance(error, UserError)):
            _note(folder, {"overrides": list(invocation.overrides), "error": in_words(error)})
        raise


def _note(folder: Path, record: dict[str, object]) -> None:
    with suppress(OSError, ValueError, UserError, RunError):  # of a full disk, or a folder that another run holds
        own_folder(folder / FAILED.parent)
        with claimed(folder):
            write_durably(folder / FAILED, json.dumps(record, indent=2).encode("utf-8", "backslashreplace"))


def forget_failure(folder: Path) -> None:
    """Remove the note of a run that is started again."""
    with suppress(OSError):
        (folder / FAILED).unlink(missing_ok=True)


def failure_in(folder: Path) -> tuple[list[str], str] | None:
    """Overrides of the run in a folder and why it has failed; None if it has not, or nothing says so."""
    try:
        record = json.loads(read_text(folder / FAILED))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    overrides: Any = record.get("overrides")
    reason = record.get("error")
    return (overrides, reason) if fits(overrides, list[str]) and isinstance(reason, str) else None
