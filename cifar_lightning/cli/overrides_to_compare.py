"""What ``runs=`` puts before the command line: the folder for the comparison."""

from collections.abc import Sequence
from pathlib import Path

from cifar_lightning.config.overrides import expanded, quoted, values
from cifar_lightning.errors import UserError
from cifar_lightning.runs.found import comparison_folder


def compare_prelude(typed: list[str], config_dirs: Sequence[Path] = ()) -> list[str]:
    """The folder for the comparison; then what is typed.

    Args:
        typed: Overrides of the command line.
        config_dirs: Folders with choices of one's own, beside conf/.

    Raises:
        UserError: If nothing is given to compare.
    """
    given = values(typed)
    if "runs" not in given:
        raise UserError("runs=FOLDER is missing: a folder of runs, such as runs=logs/sweep, or a list of these")
    places = given["runs"] if isinstance(given["runs"], list) else [given["runs"]]
    if "output_dir" in given or not places:
        return typed
    folder = comparison_folder([expanded("runs", str(place)) for place in places])
    return [f"output_dir={quoted(folder)}", *typed]
