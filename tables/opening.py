"""Opens a file of any format, and finds its columns."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

from tables.blocks import Place
from tables.columns import Found, Wanted, find_column, shown_names
from tables.errors import TableError
from tables.json_lines import parsed
from tables.kinds import PARQUET_MAGIC, Format, Kind, format_of, kind_of
from tables.layout import Head, Layout, csv_layout, read_head
from tables.parquet_files import parquet_columns
from tables.streams import ByteStream, Source, open_stream

_FIRST_LINES = 1_000

Records = TypeVar("Records")


@dataclass(frozen=True)
class Table:
    """A file, how it is written, and its columns."""

    source: Source
    name: str
    """Its name in errors."""
    kind: Kind
    layout: Layout | None
    """None for Parquet."""
    columns: tuple[str, ...]
    """Names of its columns; of JSON Lines, the names in its first objects."""
    found: tuple[int, ...] = ()
    """Index in `columns` of each wanted column."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What was assumed, in words."""

    @property
    def is_seekable(self) -> bool:
        """True if reading can begin at a position in bytes."""
        return self.layout is not None and self.kind.compression is None and not self.layout.is_recoded

    def place(self, row: int, offset: int) -> Place:
        """Return the position of a row; `offset` counts only if reading can begin there."""
        return Place(row, offset if self.is_seekable else 0)


def inspect(source: Source, name: str, wanted: Sequence[Wanted], kind: Kind | None = None) -> Table:
    """Read the beginning of a file, and find the columns `wanted`. Without `kind`, suffix and content tell the format.

    A file of JSON Lines without any object has no columns, and none is looked for.

    Raises:
        TableError: the file is damaged or of another format, or a column cannot be found.
        OSError: the file cannot be opened.
    """
    kind = kind or (kind_of(source) if isinstance(source, Path) else None)
    with open_stream(source, name, kind) as stream:
        is_parquet = kind.format is Format.PARQUET if kind else stream.start == PARQUET_MAGIC
        head = None if is_parquet else read_head(stream)
        compression = stream.compression
    if head is None:
        kind, layout = Kind(Format.PARQUET, None), None
        columns = tuple(parquet_columns(source, name))
    else:
        given = kind.delimiter if kind else None
        kind = Kind(format_of(head.text, name, kind.format if kind else None), compression, given)
        if kind.format is Format.CSV:
            layout = csv_layout(head, name, given, wanted)
            columns = layout.columns
        else:
            layout = Layout(head.encoding, head.newline)
            columns = _field_names(head)
            if not columns:
                format_of(head.text, name, None)  # raises for a JSON array, whose lines are no objects
                return Table(source, name, kind, layout, ())
    found = [find_column(columns, column) for column in wanted]
    if problems := [problem for problem in found if isinstance(problem, str)]:
        raise TableError(_column_error(name, columns, layout, wanted, problems))
    places = [place for place in found if isinstance(place, Found)]
    notes = [*(layout.notes(given is not None) if layout else ()), *(place.note for place in places if place.note)]
    return Table(source, name, kind, layout, columns, tuple(place.index for place in places), tuple(notes))


@contextmanager
def open_records(
    table: Table, reader: Callable[[ByteStream, Layout, int], Records], offset: int = 0
) -> Iterator[tuple[Records, ByteStream]]:
    """Open a text file with `CsvRecords` or `JsonLines`, from a byte `offset` on if the table is seekable.

    Raises:
        TableError: the file is damaged.
        OSError: the file cannot be opened.
    """
    if table.layout is None:
        raise ValueError(f"{table.name} is no text file")
    with open_stream(table.source, table.name, table.kind) as stream:
        if table.layout.is_recoded:
            stream.recode(table.layout.encoding.codec)
        yield reader(stream, table.layout, offset), stream


def _field_names(head: Head) -> tuple[str, ...]:
    values = map(parsed, islice(head.lines(), _FIRST_LINES))
    return tuple(dict.fromkeys(name for value in values if isinstance(value, dict) for name in value))


def _column_error(
    name: str, columns: Sequence[str], layout: Layout | None, wanted: Sequence[Wanted], problems: list[str]
) -> str:
    """Return the problems with what solves them: several are a list below the name of the file."""
    told = [problem if problem.endswith("?") else f"{problem}." for problem in problems]
    told.append(f"The columns are {shown_names(columns)}.")
    if layout is not None and layout.delimiter and not any(column.chosen for column in wanted):
        positions = " and ".join(f"{column.setting}={place}" for place, column in enumerate(wanted, start=1))
        told.append(f"If the file has no header, name columns by position, such as {positions}.")
    return f"{name}: {' '.join(told)}" if len(problems) == 1 else "\n    ".join([f"{name}:", *told])
