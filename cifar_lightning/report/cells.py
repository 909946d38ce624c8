"""CSV files, with any name as a cell that a spreadsheet takes for text."""

import csv
from collections.abc import Iterable, Sequence
from io import StringIO
from typing import Any

from cifar_lightning.errors import printable

_OF_FORMULAS = tuple("=+-@＝＋－＠")
"""What a cell begins with that a spreadsheet takes for a formula, and would compute."""


def cell(name: str) -> str:
    """A name as it is written into a CSV file.

    What cannot be printed becomes an escape, so that each line of the file is a row. An apostrophe is put before a
    name that begins as a formula does, or with an apostrophe: without the first one it is the name again.
    """
    name = printable(name)
    return f"'{name}" if name.startswith((*_OF_FORMULAS, "'")) else name


def csv_file(lines: Iterable[Sequence[Any]]) -> bytes:
    """Lines as a CSV file, where None and nan are empty cells; names are to come from ``cell``."""
    text = StringIO(newline="")
    writer = csv.writer(text)
    for line in lines:
        writer.writerow("" if value is None or value != value else value for value in line)  # nan is not itself
    return text.getvalue().encode()
