"""Blocks of the rows of CSV and JSON Lines files, from any position on."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from tables.blocks import BLOCK_ROWS, LINE, Block, Place, Rejected, value_fault
from tables.csv_records import CsvRecords
from tables.errors import TableError
from tables.json_lines import JsonLines
from tables.kinds import Format
from tables.opening import Table, open_records

FieldCheck = Callable[[Sequence[str]], str | None]
"""Returns what is wrong with the names of an object's fields."""


def csv_blocks(table: Table, start: Place) -> Iterator[Block]:
    """Yield the rows of a CSV file from `start` on, at least one block; all columns are strings.

    Raises:
        TableError: the file is damaged.
    """
    text_at = table.found[0]
    text_name = table.columns[text_at]
    schema = pa.schema([(name, pa.string()) for name in unique_names(table.columns)])
    with open_records(table, CsvRecords, start.offset) as (records, stream):
        row = start.row if start.offset else 0
        rows: list[list[str]] = []
        rejected: list[Rejected] = []

        def block() -> Block:
            fields: list[tuple[str, ...]] = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
            content = pa.table([pa.array(column, pa.string()) for column in fields], schema=schema)
            end = table.place(row, records.offset)
            return Block(content, list(fields[text_at]), rejected, end, stream.fraction(records.offset), records.nuls)

        for _, record in records:
            row += 1
            if row <= start.row:
                continue  # rows before the start, if reading cannot begin there
            if isinstance(record, str):
                rejected.append(Rejected(row, record))
            elif fault := value_fault(text_name, record[text_at]):
                rejected.append(Rejected(row, fault))
            else:
                rows.append(record)
            if row % BLOCK_ROWS == 0:
                yield block()
                rows, rejected = [], []
        if rows or rejected or row == start.row:
            yield block()


def json_blocks(table: Table, start: Place, keep_lines: bool, check: FieldCheck) -> Iterator[Block]:
    """Yield the rows of a JSON Lines file from `start` on, at least one block.

    With `keep_lines`, the only column is `LINE`; otherwise each field becomes a column. `check` may reject a row by the
    names of its fields.

    Raises:
        TableError: the file is damaged, or the values of a field cannot be combined in one column.
    """
    text_name = table.columns[table.found[0]] if table.found else ""
    with open_records(table, JsonLines, start.offset) as (records, stream):
        row = start.row if start.offset else 0
        kept: list[bytes] = []
        objects: list[dict[str, Any]] = []
        rejected: list[Rejected] = []

        def block() -> Block:
            content = pa.table({LINE: pa.array(kept, pa.binary())}) if keep_lines else _content(objects, table, row)
            texts = [item[text_name] for item in objects]
            end = table.place(row, records.offset)
            return Block(content, texts, rejected, end, stream.fraction(records.offset), records.nuls)

        for _, line, value in records:
            row += 1
            if row <= start.row:
                continue  # rows before the start, if reading cannot begin there
            if isinstance(value, str):
                fault: str | None = value
            else:
                fault = value_fault(text_name, value.get(text_name)) or check(list(value))
            if fault is not None:
                rejected.append(Rejected(row, fault))
            elif not isinstance(value, str):
                objects.append(value)
                kept.append(line)
            if row % BLOCK_ROWS == 0:
                yield block()
                kept, objects, rejected = [], [], []
        if objects or rejected or row == start.row:
            yield block()


def places(table: Table, every: int) -> list[Place]:
    """Return the positions of each `every`-th row of a text file, and of its end.

    Raises:
        TableError: the file is damaged.
    """
    found: list[Place] = []
    reader: Callable[..., CsvRecords | JsonLines] = CsvRecords if table.kind.format is Format.CSV else JsonLines
    with open_records(table, reader) as (records, _):
        row = 0
        start = table.place(0, records.offset)
        for row, _ in enumerate(records, start=1):
            if (row - 1) % every == 0:
                found.append(start)
            if row % every == 0:
                start = table.place(row, records.offset)
        return [*(found or [Place()]), table.place(row, records.offset)]


def unique_names(columns: Sequence[str]) -> list[str]:
    """Return the names of a CSV file's columns; those without a name are called after their positions."""
    return [name if name.strip() else f"column {place}" for place, name in enumerate(columns, start=1)]


def _content(objects: list[dict[str, Any]], table: Table, row: int) -> pa.Table:
    names = dict.fromkeys(name for item in objects for name in item)
    arrays = {}
    for name in names:
        try:
            arrays[name] = pa.array([item.get(name) for item in objects])
        except (pa.ArrowException, OverflowError) as error:
            raise TableError(
                f"{table.name}: the values of {name!r} up to row {row:,} cannot form one column: {error}. "
                "JSON Lines as the output keep them as they are."
            ) from error
    return pa.table(arrays)
