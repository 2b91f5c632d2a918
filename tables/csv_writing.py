"""Formats rows as CSV so that Python's csv module, pandas, pyarrow and spreadsheets read the same cells."""

import re
from collections.abc import Iterable, Iterator, Sequence

from serving.model_repo.texts import FORMULA_STARTS

Cell = str | int | float | None
"""A value of a cell. None is nothing between two commas, and an empty string is two quotes."""

_NEEDS_QUOTES = re.compile('[",;|\x00-\x1f\x7f-\x9f\u2028\u2029]|^[\\s\ufeff]|\\s$')
"""Quotes, usual delimiters and line ends of any program; blanks, which some readers strip from cells without quotes; a
byte order mark, which is no text at the start of a file."""
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)*|[.,]\d+)([eE][+-]?\d+)?\s*%?", re.ASCII)


def csv_lines(rows: Iterable[Sequence[Cell]], delimiter: str = ",", escape_formulas: bool = False) -> Iterator[str]:
    """Yield each row as one record of CSV, with its line end. `delimiter` is one of the usual ones: , ; | or a tab.

    NUL characters are removed: no spreadsheet and no csv module before Python 3.11 reads them. With `escape_formulas`,
    a `'` precedes each cell that a spreadsheet would run as a formula.
    """
    cell = _escaped_cell if escape_formulas else _cell
    for row in rows:
        # A record of one empty cell would be a blank line, which readers skip.
        yield (delimiter.join(map(cell, row)) or '""') + "\n"


def csv_header(names: Sequence[str], delimiter: str = ",", escape_formulas: bool = False) -> str:
    """Return the names of the columns as the first record of a CSV file."""
    (line,) = csv_lines([[name or None for name in names]], delimiter, escape_formulas)
    if line.startswith("ID"):  # Excel takes a file that begins with ID for another format (SYLK) and refuses it
        first, rest = line[: len(names[0])], line[len(names[0]) :]
        return f'"{first}"{rest}'
    return line


def without_formula(text: str) -> str:
    """Return the text, after a `'` if a spreadsheet would run it as a formula. Numbers such as -3.5 are none."""
    return f"'{text}" if text.startswith(FORMULA_STARTS) and not _NUMBER.fullmatch(text) else text


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return str(value)
    if not value:
        return '""'
    if _NEEDS_QUOTES.search(value):
        return '"{}"'.format(value.replace("\0", "").replace('"', '""'))
    return value


def _escaped_cell(value: Cell) -> str:
    return _cell(without_formula(value.replace("\0", "")) if isinstance(value, str) else value)
