"""Lists of rows for people to read: CSV files in the state directory."""

import os
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from common.errors import PipelineError
from common.wording import shortened
from tables.csv_writing import Cell, csv_header, csv_lines

_LONGEST_CELL = 32_000
"""Maximum characters of a cell; a spreadsheet cuts or refuses a cell with more than 32,767."""


class AddRow(Protocol):
    """Adds a row to a list."""

    def __call__(self, row: Sequence[Cell], place: int = 0) -> None:
        """Add `row` before all rows with a higher place, and after the others."""


@contextmanager
def row_list(path: Path, name: str, columns: Sequence[str]) -> Iterator[AddRow]:
    """Replace the file at `path` with the rows that are added in this context, one by one, in the order of places.

    A spreadsheet shows the cells as text and runs none as a formula. `name` is used in errors.

    Raises:
        PipelineError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as added:
            rows = _Rows(added)
            yield rows.add
            # The texts are users' texts: only this account may read them, whatever the umask is.
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "wb") as file:  # noqa: PTH123
                file.write(csv_header(columns).encode())
                file.writelines(rows.in_order())
        part.replace(path)
    except OSError as error:
        raise PipelineError(
            f"The list of {name} {path} cannot be written: {error.strerror}. "
            "Free some space, or set SENTIMENT_STATE_DIR to another directory."
        ) from error
    finally:
        with suppress(OSError):  # it was renamed, or could not be created
            part.unlink()


class _Rows:
    """Rows of CSV in a file. Memory has only the place and the size of each."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._places = array("Q")
        self._ends = array("Q", [0])

    def add(self, row: Sequence[Cell], place: int = 0) -> None:
        for line in csv_lines([[*map(_cut, row)]], escape_formulas=True):
            size = self._file.write(line.encode("utf-8", "backslashreplace"))
            self._places.append(place)
            self._ends.append(self._ends[-1] + size)

    def in_order(self) -> Iterator[bytes]:
        for index in np.argsort(np.array(self._places), kind="stable"):
            self._file.seek(self._ends[index])
            yield self._file.read(self._ends[index + 1] - self._ends[index])


def _cut(cell: Cell) -> Cell:
    return shortened(cell, _LONGEST_CELL) if isinstance(cell, str) else cell
