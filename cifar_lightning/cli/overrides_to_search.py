"""What is typed for search.py: its own keys, and those of train.py, values and spaces, as one of them."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning.cli.did_you_mean import explained
from cifar_lightning.config.overrides import quoted
from cifar_lightning.config.schema import compose, groups_of, keys_of
from cifar_lightning.errors import UserError, shortened
from cifar_lightning.search.space import read_space


def search_prelude(typed: list[str], config_dirs: Sequence[Path] = ()) -> list[str]:
    """The keys of a search, with the overrides of train.py in ``overrides``.

    Args:
        typed: Overrides of the command line.
        config_dirs: Folders with choices of one's own, beside conf/.

    Raises:
        UserError: If a key is not one, or a space cannot be read.
    """
    own_keys = {*keys_of("search"), *groups_of("search")} - {"defaults", "hydra"}
    own = [override for override in typed if _key(override) in own_keys or _key(override).startswith("hydra")]
    rest = [override for override in typed if override not in own]
    if not any(_key(override) == "study" for override in own):
        raise UserError("study=FOLDER is missing: a folder for the search, such as study=logs/lr")
    if any(_key(override) == "overrides" for override in own):  # as composed already
        if rest:
            raise UserError(
                f"{shortened(rest[0], 100)} is given beside overrides=: put it there, or leave overrides out"
            )
        return own
    for override in rest:
        _refuse_misspelt(override, own_keys)
    rest = [*(override for override in own if _key(override) == "hydra.searchpath"), *rest]  # it counts for both
    if config_dirs:
        rest = [f"hydra.searchpath={quoted([f'file://{folder.absolute()}' for folder in config_dirs])}", *rest]
    is_named = any(_key(override) in ("search", "space") for override in own)
    _check_keys(rest, is_named=is_named, config_dirs=config_dirs)
    return [*own, f"overrides={quoted(list(rest))}"]


def _key(override: str) -> str:
    return override.partition("=")[0]


def _refuse_misspelt(override: str, own: set[str]) -> None:
    """Refuse what is nearly a key of a search: train.py would name one of its own."""
    key = _key(override)
    known = {*keys_of("train"), *groups_of("train")}
    close = difflib.get_close_matches(key, own, n=1, cutoff=0.8)
    if key not in known and "=" in override and close:
        raise UserError(f"{shortened(override, 100)}: there is no key {key}: did you mean {close[0]}?")


def _check_keys(overrides: list[str], *, is_named: bool, config_dirs: Sequence[Path]) -> None:
    """Refuse keys that train.py has not, with the nearest ones that it has.

    Args:
        overrides: Those of train.py.
        is_named: Whether there is another space beside those in them.
        config_dirs: See ``search_prelude``.
    """
    space = read_space({}, overrides, may_be_empty=is_named)
    first = space.overrides({one.key: one.tried[0] for one in space.parameters})
    try:
        compose(*first)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        raise explained(error, first, "train", config_dirs) from error
