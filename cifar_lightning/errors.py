"""The errors that become one line and an exit code, and words for such lines."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """What the user can mend: one line that names the key or file, what was allowed, what was got, and the fix."""


class SweepError(UserError):
    """A fault of the whole sweep: no further job is run."""


class RunError(Exception):
    """What went wrong while a run ran, with what is left of it and what to do, in one line."""


def one_line(error: BaseException) -> str:
    """An exception's message without its line breaks, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint at the valid name nearest to a misspelt one, or at all of them."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else f"; allowed: {', '.join(valid)}"


def listed(names: Sequence[str], *, at_most: int = 10) -> str:
    """Names in a list for an error message: the first few of many, and how many there are.

    >>> listed(["cat", "dog"]), listed(["cat", "dog", "goat"], at_most=2)
    ('cat, dog', 'cat, dog and 1 more')
    """
    more = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {more:,} more" if more > 0 else "")
