"""The errors that become one line and an exit code, and words for such lines."""

import difflib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """What the user can mend: one line that names the key or file, what was allowed, what was got, and the fix."""


class SweepError(UserError):
    """A fault of the whole sweep: no further job is run."""


class RunError(Exception):
    """What went wrong while a run ran, with what is left of it and what to do, in one line."""


class Pruned(RunError):
    """A search has ended a run that would not have become one of the best."""


def one_line(error: BaseException) -> str:
    """An exception's message without its line breaks, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def in_words(error: BaseException) -> str:
    """An exception in one line: the project's own errors say what is wrong, others need their type before it."""
    if isinstance(error, UserError | RunError) or not str(error).strip():
        return one_line(error)
    return f"{type(error).__name__}: {one_line(error)}"


def printable(text: str, *, keep: str = "") -> str:
    r"""Text that is safe to write anywhere: a character that cannot be printed becomes an escape such as ``\x1b``.

    The names of folders and classes may hold anything. Raw, an escape sequence would command the terminal, a line break
    would begin a line of its own, a mark could turn the direction of writing, and half a surrogate pair could not be
    encoded. Text without such characters stays as it is.

    Args:
        text: Any text.
        keep: Characters that stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def shortened(text: str, length: int) -> str:
    """Text of at most so many characters, with an ellipsis in place of the rest."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def listed(names: Collection[str], *, at_most: int = 10) -> str:
    """Names for a line: the first few of them, safe to print and not too long, and how many more there are."""
    first = ", ".join(shortened(printable(name), 80) for name in list(names)[:at_most])
    return f"{first} and {len(names) - at_most:,} more" if len(names) > at_most else first


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint at the valid name nearest to a misspelt one, or at all of them."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f": did you mean {close[0]}?" if close else f"; allowed: {listed(valid, at_most=30)}"


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Around imports of libraries that an extra of the project brings.

    Raises:
        UserError: If one of them is not installed; names the command that installs it.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(f"{error.name or one_line(error)} is not installed: pip install -e '.[{extra}]'") from error
