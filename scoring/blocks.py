"""Reads inputs of every format as blocks of rows: the texts to classify, and the columns that are kept."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pyarrow as pa

from errors import PipelineError

BLOCK_ROWS = 256
"""Most rows that are read at once. A block never reaches over a multiple of it, so parts of files end between two."""

LINE = "\0line"
"""Column, of a name that no other has, of JSON Lines that are written as such again: the line as it is, so that nothing
of it changes."""

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Place:
    """Where a row begins in a file."""

    row: int = 0
    """Rows before it."""
    offset: int = 0
    """Bytes before it, in a text file that is not compressed; 0 elsewhere."""


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be classified."""

    row: int
    """Its number in the file: the first is 1, and neither the header nor blank lines count."""
    reason: str


@dataclass(frozen=True)
class Block:
    """Rows of a file, one after the other."""

    table: pa.Table
    """The columns of the rows that can be classified."""
    texts: list[str]
    """Theirs."""
    rejected: list[Rejected]
    end: Place
    """Where the next block begins."""
    fraction: float
    """Of the file that is read, with this block; 0 to 1."""

    @property
    def rows(self) -> int:
        """Rows of the file, bad ones among them."""
        return len(self.texts) + len(self.rejected)


@dataclass(frozen=True)
class Columns:
    """What a job reads of a file and adds to it."""

    text: str
    added: tuple[str, str, str]
    """Label, score and version."""

    def check(self, names: Sequence[str], where: str) -> None:
        """See that a file's columns have the text, and not those that are added.

        Raises:
            PipelineError: they do not.
        """
        problem = self.problem(names)
        if problem:
            raise PipelineError(f"{where} {problem}")

    def problem(self, names: Sequence[str]) -> str | None:
        """What is wrong with a file's or a row's columns."""
        if self.text not in names:
            near = difflib.get_close_matches(self.text, names, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, names)) or 'none'}."
            return f"has no column {self.text!r} (--text-column); {advice}"
        clashes = [name for name in self.added if name in names]
        if clashes:
            return f"has a column {clashes[0]!r} already; name the added ones otherwise (--prefix predicted_)."
        return None


def with_last(items: Iterator[T]) -> Iterator[tuple[T, bool]]:
    """Each item, and whether it is the last."""
    previous: list[T] = []
    for item in items:
        if previous:
            yield previous[0], False
        previous = [item]
    if previous:
        yield previous[0], True
