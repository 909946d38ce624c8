"""What is typed: Hydra's flags and the overrides apart, and what is refused before Hydra sees it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from cifar_lightning.cli.mistyped import refuse_mistyped
from cifar_lightning.config.overrides import as_texts
from cifar_lightning.errors import UserError


@dataclass(frozen=True)
class CommandLine:
    """A command line, read.

    Attributes:
        flags: Hydra's own, as typed.
        overrides: The rest, in which text stays text; see ``config.overrides.as_texts``.
        config_dirs: The folder of ``--config-dir``, if one is given.
        is_sweep: Whether several jobs are asked for.
        runs: Whether a job is run at all, or Hydra only tells something.
    """

    flags: list[str]
    overrides: list[str]
    config_dirs: list[Path]
    is_sweep: bool
    runs: bool


def read_command_line(arguments: Sequence[str], config_name: str) -> CommandLine:
    """Read a command line.

    Flags and overrides are taken apart, since argparse takes a flag between two overrides for the end of them.

    Args:
        arguments: What is typed after the script's name.
        config_name: Name of the entry's config.

    Raises:
        UserError: If a flag is not Hydra's, by which argparse would write its usage over several lines; or an override
            would slip past the checks of a run, or is none.
    """
    from cifar_lightning.patches import hydra_flags  # late, as it imports torch, and --help should answer at once

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; a key is set as key=value, and --help lists the keys")

    arguments = _with_info_of_all([_from_home(argument) for argument in arguments])
    parser = hydra_flags()
    parser.error = refuse  # type: ignore[method-assign]
    parsed = parser.parse_intermixed_args(arguments)
    flags = [argument for argument in arguments if argument not in parsed.overrides]
    refuse_mistyped(parsed.overrides, config_name)
    _refuse_overrides(parsed.overrides)
    return CommandLine(
        flags=flags,
        overrides=as_texts(parsed.overrides),
        config_dirs=[Path(parsed.config_dir)] if parsed.config_dir else [],
        is_sweep=parsed.multirun or "hydra.mode=MULTIRUN" in parsed.overrides,
        runs=not (parsed.hydra_help or parsed.info or parsed.shell_completion),
    )


def _from_home(argument: str) -> str:
    """``--config-dir=~/conf`` with the home folder; shells put it in only where the folder is an argument by itself."""
    flag, equals, folder = argument.partition("=")
    return f"{flag}={os.path.expanduser(folder)}" if equals and flag in ("--config-dir", "-cd") else argument


def _with_info_of_all(arguments: list[str]) -> list[str]:
    """Arguments in which ``--info`` before an override is ``--info=all``; argparse takes the override for its value."""
    return [
        "--info=all" if argument in ("--info", "-i") and "=" in following else argument
        for argument, following in pairwise([*arguments, ""])
    ]


def _refuse_overrides(overrides: list[str]) -> None:
    """Refuse what would slip past the checks of a run.

    With ``+key=value`` and ``~key`` that is the schema: a misspelt key would be taken in silence.
    """
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if override.startswith("+") and not key.startswith("hydra"):
            raise UserError(f"{override}: no key can be added; write {override.lstrip('+')} to set one that exists")
        if override.startswith("~") and not key.startswith("hydra"):
            raise UserError(f"{override}: no key can be removed; write {key}=null to go without")
        if key == "hydra.output_subdir":  # Hydra would write over the record of a run that is there
            raise UserError(f"{override}: leave it out; a run writes its own .hydra/, once its folder is free for it")


def refuse_surroundings(*, may_be_rank: bool = False) -> bool:
    """Refuse what the process was started in, where no run can be done there.

    Args:
        may_be_rank: Whether it may be one of several processes that torchrun or srun has started.

    Returns:
        Whether it is one.

    Raises:
        UserError: If the current folder is gone, or the environment says that this is one of several processes.
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:  # torch could not even be imported
        raise UserError("the current folder has been deleted: go to one that exists, as with cd") from error
    from cifar_lightning.device import refuse_several_processes  # late, as it imports torch
    from cifar_lightning.ranks import place_in

    if may_be_rank and place_in(os.environ) is not None:
        return True
    try:
        refuse_several_processes(os.environ)
    except ValueError as error:
        raise UserError(str(error)) from error
    return False
