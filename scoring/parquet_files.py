"""Reads Parquet, some rows at a time, however large its row groups are."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from errors import PipelineError
from scoring.blocks import BLOCK_ROWS, Block, Columns, Place, Rejected
from scoring.inputs import InputFile
from serving.texts import text_fault

_BUFFER = 2**20


@contextmanager
def _opened(file: InputFile) -> Iterator[pq.ParquetFile]:
    try:
        # With a buffer, a column is read bit by bit, and not a whole row group of it at once.
        with pq.ParquetFile(file.path, buffer_size=_BUFFER) as opened:
            yield opened
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise PipelineError(f"{file.path} cannot be read as Parquet: {error}.") from error


def parquet_columns(file: InputFile, text_column: str) -> list[str]:
    """The names of a Parquet file's columns.

    Raises:
        PipelineError: it is no Parquet, a name is twice in it, or the text is no string.
    """
    with _opened(file) as opened:
        names = list(opened.schema_arrow.names)
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise PipelineError(f"{file.path} has two columns {twice[0]!r}.")
        if text_column in names and not _is_text(opened.schema_arrow.field(text_column).type):
            kind = opened.schema_arrow.field(text_column).type
            raise PipelineError(f"{file.path}: the column {text_column!r} holds {kind}; strings are needed.")
        return names


def count_rows(file: InputFile) -> int:
    """Rows of a Parquet file."""
    with _opened(file) as opened:
        return int(opened.metadata.num_rows)


def parquet_blocks(file: InputFile, columns: Columns, start: Place) -> Iterator[Block]:
    """The rows of a Parquet file from `start` on, at least one block.

    Raises:
        PipelineError: the file is damaged.
    """
    with _opened(file) as opened:
        rows = opened.metadata.num_rows
        row, first_group = 0, 0
        while first_group < opened.num_row_groups:
            group_rows = opened.metadata.row_group(first_group).num_rows
            if row + group_rows > start.row:
                break
            row += group_rows
            first_group += 1
        if start.row >= rows:
            yield _block(opened.schema_arrow.empty_table(), columns, rows, rows)
            return
        for batch in opened.iter_batches(BLOCK_ROWS, row_groups=range(first_group, opened.num_row_groups)):
            table = pa.Table.from_batches([batch])
            skipped = min(table.num_rows, max(0, start.row - row))
            table, row = table.slice(skipped), row + skipped
            while table.num_rows:
                piece = table.slice(0, BLOCK_ROWS - row % BLOCK_ROWS)
                yield _block(piece, columns, row, rows)
                table, row = table.slice(piece.num_rows), row + piece.num_rows


def _block(table: pa.Table, columns: Columns, row: int, rows: int) -> Block:
    texts: list[str] = []
    rejected: list[Rejected] = []
    good: list[bool] = []
    for number, text in enumerate(_texts(table.column(columns.text)), start=row + 1):
        fault = "is null" if text is None else text if isinstance(text, _Undecodable) else text_fault(text)
        good.append(fault is None)
        if fault is not None:
            rejected.append(Rejected(number, f"{columns.text!r} {fault}"))
        elif text is not None:
            texts.append(text)
    end = Place(row + table.num_rows)
    kept = table.filter(pa.array(good, pa.bool_())) if rejected else table
    return Block(kept, texts, rejected, end, end.row / max(1, rows))


class _Undecodable(str):
    """Why a string is no text."""

    __slots__ = ()


def _texts(column: pa.ChunkedArray) -> list[str | None]:
    try:
        texts: list[str | None] = column.to_pylist()
        return texts
    except UnicodeDecodeError:
        return [_decoded(item) for item in column.cast(pa.large_binary()).to_pylist()]


def _decoded(item: bytes | None) -> str | None:
    try:
        return None if item is None else item.decode()
    except UnicodeDecodeError as error:
        return _Undecodable(f"is not UTF-8: {error.reason} at byte {error.start}")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or kind == pa.null()
    )
