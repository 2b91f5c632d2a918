"""Blocks of rows, independent of the file's format: their texts, and the columns to keep."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa

from serving.model_repo.texts import text_fault
from tables.columns import shown_name

BLOCK_ROWS = 256
"""Maximum rows per block. Blocks end at multiples of it, so a part of a file always ends between two blocks."""

LINE = "\0line"
"""Name of the column with the unchanged line of a JSON Lines file, if lines are kept."""

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Place:
    """The position of a row in a file."""

    row: int = 0
    """Number of rows before it."""
    offset: int = 0
    """Bytes before it, if reading can begin there; otherwise 0: compressed files, UTF-16, and Parquet."""


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be classified."""

    row: int
    """Row number in the file: the first is 1; headers and blank lines do not count."""
    reason: str


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a file."""

    table: pa.Table
    """The columns of the valid rows."""
    texts: list[str]
    """The texts of the valid rows."""
    rejected: list[Rejected]
    end: Place
    """Position of the next block."""
    fraction: float
    """Share of the file that has been read up to the end of this block, 0 to 1."""
    nuls: int = 0
    """Number of NUL characters that were removed since the reading began."""

    @property
    def rows(self) -> int:
        """Number of rows, including rejected ones."""
        return len(self.texts) + len(self.rejected)


def value_fault(name: str, value: Any) -> str | None:
    """Return why a value of the column `name` is no text that can be classified; None if it is one."""
    if isinstance(value, str):
        fault = text_fault(value)
    else:
        fault = "is missing" if value is None else f"is {type(value).__name__}"
    return f"{shown_name(name)} {fault}" if fault else None


def nuls_removed(count: int) -> str:
    """Return a note on removed NUL characters; empty if there were none."""
    return f"{count:,} NUL character{'' if count == 1 else 's'} removed" if count else ""


def with_last(items: Iterator[T]) -> Iterator[tuple[T, bool]]:
    """Yield each item with a flag that is True for the last one."""
    previous: list[T] = []
    for item in items:
        if previous:
            yield previous[0], False
        previous = [item]
    if previous:
        yield previous[0], True
