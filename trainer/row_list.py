"""Lists of rows for people to read: CSV files in the state directory."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import PipelineError
from tables.csv_writing import Cell, csv_header, csv_lines

_LONGEST_CELL = 32_000
"""Maximum characters of a cell; a spreadsheet cuts or refuses a cell with more than 32,767."""

AddRow = Callable[[Sequence[Cell]], None]


@contextmanager
def row_list(path: Path, name: str, columns: Sequence[str]) -> Iterator[AddRow]:
    """Replace the file at `path` with the rows that are added in this context, one by one.

    A spreadsheet shows the cells as text and runs none as a formula. `name` is used in errors.

    Raises:
        PipelineError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The texts are users' texts: only this account may read them, whatever the umask is.
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:  # noqa: PTH123
            file.write(csv_header(columns))
            yield lambda row: file.writelines(csv_lines([[*map(_cut, row)]], escape_formulas=True))
        part.replace(path)
    except OSError as error:
        raise PipelineError(
            f"The list of {name} {path} cannot be written: {error.strerror}. "
            "Free some space, or set SENTIMENT_STATE_DIR to another directory."
        ) from error
    finally:
        with suppress(OSError):  # it was renamed, or could not be created
            part.unlink()


def _cut(cell: Cell) -> Cell:
    return f"{cell[:_LONGEST_CELL]}…" if isinstance(cell, str) and len(cell) > _LONGEST_CELL else cell
