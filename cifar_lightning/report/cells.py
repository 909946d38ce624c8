"""Cells of CSV files: any name as one that a spreadsheet takes for text."""

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
