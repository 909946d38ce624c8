"""What ``runs=`` or ``ckpt=`` puts before the command line: a folder for the comparison, and a checkpoint's data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar_lightning.config.comparing import OF_CHECKPOINTS, OF_RUNS
from cifar_lightning.config.overrides import expanded, quoted, values
from cifar_lightning.config.schema import run_folder
from cifar_lightning.errors import UserError
from cifar_lightning.runs.found import comparison_folder

_EACH_ITS_OWN = ("tta", "compile", "trainer.precision")
"""Keys of the first checkpoint's that are not taken for all."""


def compare_prelude(typed: list[str], config_dirs: Sequence[Path] = ()) -> list[str]:
    """The folder for the comparison, and of checkpoints the data of the first one; then what is typed.

    Args:
        typed: Overrides of the command line.
        config_dirs: Folders with choices of one's own, beside conf/.

    Raises:
        UserError: If nothing is given to compare, or a key that has no part in it, or the first checkpoint is none.
    """
    given = dict(override.partition("=")[::2] for override in typed)
    if ("runs" in given) == ("ckpt" in given):
        problem = "only one of them at a time" if "runs" in given else "one of them is missing"
        raise UserError(f"runs=FOLDER compares runs, ckpt=[a.ckpt,b.ckpt] checkpoints on the same images: {problem}")
    of_runs = "runs" in given
    for key in given:
        if key.partition(".")[0] in (OF_CHECKPOINTS if of_runs else OF_RUNS):
            kind, own = ("runs", "ckpt=") if of_runs else ("checkpoints", "runs=")
            raise UserError(f"{key}={given[key]} has no part in a comparison of {kind}: it goes with {own}")
    chosen = values(typed)
    if of_runs:
        places = _texts(chosen, "runs", given)
        folder = comparison_folder([expanded("runs", place) for place in places]) if places else None
        before = []
    else:
        folder, before = run_folder("compare"), _data(_texts(chosen, "ckpt", given), given, config_dirs)
    if folder is not None and "output_dir" not in given:
        before = [f"output_dir={quoted(folder)}", *before]
    return [*before, *typed]


def _texts(chosen: dict[str, Any], key: str, given: dict[str, str]) -> list[str]:
    value = chosen.get(key, given[key])  # Hydra tells later of one that it cannot read
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _data(ckpts: Sequence[str], given: dict[str, str], config_dirs: Sequence[Path]) -> list[str]:
    """The data, threads and accelerator of the first checkpoint."""
    from cifar_lightning.checkpoint.load import read_settings  # late, as they import Lightning
    from cifar_lightning.cli.overrides_from_checkpoint import data_files, overrides_from

    if not ckpts:
        return []
    path = expanded("ckpt", ckpts[0])
    found = overrides_from(path, read_settings(path), given, data_files(config_dirs))
    return [override for override in found if override.partition("=")[0] not in _EACH_ITS_OWN]
