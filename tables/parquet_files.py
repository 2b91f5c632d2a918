"""Reads Parquet in small batches of rows, even if its row groups are large."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tables.blocks import BLOCK_ROWS, Block, Place, Rejected, value_fault
from tables.errors import TableError
from tables.streams import Source

_BUFFER = 2**20


@contextmanager
def open_parquet(source: Source, name: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file. `name` is used in errors.

    Raises:
        TableError: the file is not Parquet, or damaged.
        OSError: the file cannot be opened.
    """
    try:
        # With a buffer, a column is read in pieces instead of a whole row group at once.
        opened = pa.BufferReader(source) if isinstance(source, bytes) else source
        with pq.ParquetFile(opened, buffer_size=_BUFFER) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise TableError(f"{name} cannot be read as Parquet: {error}.") from error


def parquet_columns(source: Source, name: str) -> list[str]:
    """Return the column names of a Parquet file.

    Raises:
        TableError: the file is not Parquet, or has a column name twice.
    """
    with open_parquet(source, name) as file:
        names = list(file.schema_arrow.names)
        twice = [column for column in names if names.count(column) > 1]
        if twice:
            raise TableError(f"{name} has two columns {twice[0]!r}. Rename one.")
        return names


def check_texts(source: Source, name: str, column: str) -> None:
    """Check that a column contains strings.

    Raises:
        TableError: it does not.
    """
    with open_parquet(source, name) as file:
        kind = file.schema_arrow.field(column).type
        if not _is_text(kind):
            raise TableError(f"{name}: the column {column!r} contains {kind}. It must contain strings.")


def count_rows(source: Source, name: str) -> int:
    """Return the number of rows of a Parquet file."""
    with open_parquet(source, name) as file:
        return int(file.metadata.num_rows)


def parquet_blocks(source: Source, name: str, text: str, start: Place) -> Iterator[Block]:
    """Yield the rows of a Parquet file from `start` on, at least one block. `text` is the column with the texts.

    Raises:
        TableError: the file is damaged.
    """
    with open_parquet(source, name) as file:
        rows = file.metadata.num_rows
        row, first_group = 0, 0
        while first_group < file.num_row_groups:
            group_rows = file.metadata.row_group(first_group).num_rows
            if row + group_rows > start.row:
                break
            row += group_rows
            first_group += 1
        if start.row >= rows:
            yield _block(file.schema_arrow.empty_table(), text, rows, rows)
            return
        for batch in file.iter_batches(BLOCK_ROWS, row_groups=range(first_group, file.num_row_groups)):
            table = pa.Table.from_batches([batch])
            skipped = min(table.num_rows, max(0, start.row - row))
            table, row = table.slice(skipped), row + skipped
            while table.num_rows:
                piece = table.slice(0, BLOCK_ROWS - row % BLOCK_ROWS)
                yield _block(piece, text, row, rows)
                table, row = table.slice(piece.num_rows), row + piece.num_rows


def parquet_values(source: Source, name: str, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the values of some columns, row by row. A string that cannot be decoded is an `Undecodable`.

    Raises:
        TableError: the file is damaged.
    """
    with open_parquet(source, name) as file:
        for batch in file.iter_batches(BLOCK_ROWS, columns=list(dict.fromkeys(columns))):
            table = pa.Table.from_batches([batch])
            yield from zip(*(_values(table.column(column)) for column in columns), strict=True)


def _block(table: pa.Table, text_name: str, row: int, rows: int) -> Block:
    texts: list[str] = []
    rejected: list[Rejected] = []
    good: list[bool] = []
    for number, text in enumerate(_values(table.column(text_name)), start=row + 1):
        fault = text if isinstance(text, Undecodable) else value_fault(text_name, text)
        good.append(fault is None)
        if fault is not None:
            rejected.append(Rejected(number, fault))
        else:
            texts.append(text)
    end = Place(row + table.num_rows)
    kept = table.filter(pa.array(good, pa.bool_())) if rejected else table
    return Block(kept, texts, rejected, end, end.row / max(1, rows))


class Undecodable(str):
    """The reason why a string cannot be decoded."""

    __slots__ = ()


def _values(column: pa.ChunkedArray) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        return [_decoded(item) for item in column.cast(pa.large_binary()).to_pylist()]


def _decoded(item: bytes | None) -> str | None:
    if item is None:
        return None
    try:
        return item.decode()
    except UnicodeDecodeError as error:
        return Undecodable(f"undecodable: byte 0x{item[error.start]:02x} at position {error.start} is not utf-8")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or kind == pa.null()
    )
