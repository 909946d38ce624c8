"""Words for lines that people read."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar_lightning.errors import RunError, UserError, in_words, listed, nearest, printable, shortened


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("naïve 猫 🐱 C:\\data", "naïve 猫 🐱 C:\\data"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("two\nlines\tand\r", r"two\nlines\tand\r"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udcff\ud800", r"\udcff\ud800"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_cannot_be_printed_becomes_an_escape(text, expected):
    assert printable(text) == expected


@settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", 60)), derandomize=True, deadline=None)
@given(text=st.text())
def test_any_text_becomes_printable_and_can_be_encoded(text):
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert printable(shown) == shown


def test_line_breaks_may_be_kept():
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


def test_long_text_is_shortened():
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefg", 6) == "abcde…"


def test_lists_of_names_are_as_long_as_a_line():
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(i) for i in range(1012)], at_most=2) == "0, 1 and 1,010 more"
    assert listed(["\x1b", "x" * 100]) == r"\x1b, " + "x" * 79 + "…"


def test_the_nearest_of_many_names():
    assert nearest("cta", ["cat", "dog"]) == ": did you mean cat?"
    assert nearest("zzz", ["cat", "dog"]) == "; allowed: cat, dog"
    assert nearest("zzz", map(str, range(10**4))).endswith(" and 9,970 more")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("seed=x is\nno number"), "seed=x is no number"),
        (RunError("the loss is not finite"), "the loss is not finite"),
        (ValueError("3\n 4"), "ValueError: 3 4"),
        (KeyError(), "KeyError"),
    ],
)
def test_an_unforeseen_error_is_told_with_its_type(error, expected):
    assert in_words(error) == expected
