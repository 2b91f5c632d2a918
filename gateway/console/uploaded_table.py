"""Reads a file that was sent to the console: the rows that can be classified, and what is wrong with the others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from gateway.http.problems import FieldError, InvalidFieldsError, TooLargeError
from gateway.http.request_body import MAX_BODY_BYTES
from tables.blocks import nuls_removed, value_fault
from tables.columns import TEXT, Wanted
from tables.csv_records import CsvRecords
from tables.csv_writing import Cell
from tables.errors import TableError
from tables.json_lines import JsonLines
from tables.kinds import PARQUET_MAGIC, Format, Kind, compression_of, kind_of
from tables.opening import Table, inspect, open_records
from tables.streams import open_stream

MOST_ROWS = 5_000
"""Maximum rows: as many as a slow model classifies in a minute. `python app.py score` takes files of any size."""
MOST_COLUMNS = 1_000
TEXT_COLUMN = "Text column"
"""Name of the form's field for the column with the texts."""
ADDED = ("label", "score", "version")
_TOLD = 20
"""Faulty rows that are listed; further ones are only counted."""
_NAME = "The file"
_ANY_SIZE = "`python app.py score` takes files of any size"


@dataclass
class UploadedTable:
    """The rows of a file that can be classified."""

    columns: list[str]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    """The cells of each row, in the order of `columns`; empty ones may be missing at the end."""
    texts: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    """Number of the first line of each row."""
    faults: list[tuple[int, str]] = field(default_factory=list)
    """Each other row: its first line, and why it cannot be classified."""
    notes: list[str] = field(default_factory=list)
    """What was assumed about the file, in words."""

    @property
    def added(self) -> list[str]:
        """Names of the columns to add, which differ from those that the file has."""
        names = {column.strip().casefold() for column in self.columns}
        prefix = "predicted_" if names & set(ADDED) else ""
        return [f"{prefix}{name}" for name in ADDED]


def read_table(body: bytes, suffix: str = "", text_column: str = "") -> UploadedTable:
    """Read CSV with any usual delimiter, or JSON Lines, by the rules of `python app.py score`.

    A `suffix` such as `.csv.gz` tells the format; without a known one, the content does. `text_column` is the name or
    the position of the column with the texts; by default it is found by its usual names.

    Raises:
        InvalidFieldsError: the file is invalid, or no row can be classified; the first `_TOLD` faulty rows are listed.
        TooLargeError: the file has more than `MOST_ROWS` rows, or too many bytes after unpacking.
    """
    kind = kind_of(Path(f"file{suffix}"))
    try:
        content = _unpacked(body, kind)
        if content.startswith(PARQUET_MAGIC) or (kind and kind.format is Format.PARQUET):
            raise TableError(f"{_NAME} is Parquet, which `python app.py score` reads. Save it as CSV.")
        unpacked = Kind(kind.format, None, kind.delimiter) if kind else None
        table = inspect(content, _NAME, [Wanted(TEXT, text_column.strip() or None, TEXT_COLUMN)], unpacked)
        _check_columns(len(table.columns))
        found = _read(table)
    except TableError as error:
        raise InvalidFieldsError([FieldError("file", str(error))]) from error
    if not found.rows:
        raise refusal(found.faults) if found.faults else InvalidFieldsError([FieldError("file", "has no rows")])
    clashes = [name for name in found.added if name in found.columns]
    if clashes:
        raise InvalidFieldsError([FieldError(f"column {name}", "already exists; rename it") for name in clashes])
    return found


def refusal(faults: list[tuple[int, str]]) -> InvalidFieldsError:
    """Return the error for a file with these faulty rows."""
    return InvalidFieldsError([FieldError(*parts) for parts in told_faults(faults)])


def told_faults(faults: list[tuple[int, str]]) -> list[tuple[str, str]]:
    """Return the place and the fault of the first `_TOLD` rows, and how many more there are."""
    told = [(f"line {line}", fault) for line, fault in faults[:_TOLD]]
    if len(faults) > _TOLD:
        told.append(("file", f"has {len(faults) - _TOLD:,} more such rows"))
    return told


def _read(table: Table) -> UploadedTable:
    found = UploadedTable(list(table.columns), notes=list(table.notes))
    records = _csv_records(table, found) if table.kind.format is Format.CSV else _json_records(table, found)
    text_at = table.found[0] if table.found else 0
    for number, (line, record) in enumerate(records, start=1):
        if number > MOST_ROWS:
            raise TooLargeError(
                "The file is too long.", [FieldError("file", f"has over {MOST_ROWS:,} rows; {_ANY_SIZE}")]
            )
        if isinstance(record, str):
            found.faults.append((line, record))
            continue
        text: Any = record[text_at] if text_at < len(record) else None
        if fault := value_fault(table.columns[text_at] if table.columns else TEXT.what, text):
            found.faults.append((line, fault))
        else:
            found.rows.append([*map(_cell, record)])
            found.texts.append(text)
            found.lines.append(line)
    return found


def _csv_records(table: Table, found: UploadedTable) -> Iterator[tuple[int, Sequence[Any] | str]]:
    with open_records(table, CsvRecords) as (records, _):
        yield from records
        found.notes += filter(None, [nuls_removed(records.nuls)])


def _json_records(table: Table, found: UploadedTable) -> Iterator[tuple[int, Sequence[Any] | str]]:
    """Yield the objects as rows; append further names of fields to the columns that were `found`."""
    columns = found.columns
    places = {name: place for place, name in enumerate(columns)}
    with open_records(table, JsonLines) as (records, _):
        for line, _, value in records:
            if isinstance(value, str):
                yield line, value
                continue
            for name in value:
                if places.setdefault(name, len(columns)) == len(columns):
                    columns.append(name)
            _check_columns(len(columns))
            row: list[Any] = [None] * len(columns)
            for name, item in value.items():
                row[places[name]] = item
            yield line, row
        found.notes += filter(None, [nuls_removed(records.nuls)])


def _cell(value: Any) -> Cell:
    if value is None or isinstance(value, str | float) or type(value) is int:
        return value
    return orjson.dumps(value).decode()


def _unpacked(body: bytes, kind: Kind | None) -> bytes:
    with open_stream(body, _NAME, kind) as stream:
        pieces, size = [], 0
        while size <= MAX_BODY_BYTES and (piece := stream.read(MAX_BODY_BYTES)):
            pieces.append(piece)
            size += len(piece)
    if size > MAX_BODY_BYTES:
        most = f"has over {MAX_BODY_BYTES:,} bytes after unpacking; {_ANY_SIZE}"
        raise TooLargeError("The file is too large.", [FieldError("file", most)])
    content = b"".join(pieces)
    # Otherwise the reader would unpack what was packed twice, to any size.
    if compression_of(content[:4], None):
        raise TableError(f"{_NAME} is compressed twice. Unpack it once.")
    return content


def _check_columns(columns: int) -> None:
    if columns > MOST_COLUMNS:
        raise InvalidFieldsError([FieldError("file", f"has {columns:,} columns; at most {MOST_COLUMNS:,} are read")])
