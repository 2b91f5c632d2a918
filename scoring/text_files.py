"""Reads CSV and JSON Lines, row by row, so that a bad row spoils no other."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa

from errors import PipelineError
from scoring.blocks import BLOCK_ROWS, LINE, Block, Columns, Place, Rejected
from scoring.csv_records import CsvRecords, row_fault
from scoring.inputs import Format, InputFile
from serving.texts import text_fault

LONGEST_LINE = 16 * 2**20
"""Bytes. What is longer is cut, and so no row; it would be kept in memory whole."""
LONGEST_FIELD = 2**20
"""Characters in a field of CSV: ten times the longest text. Without a limit, a quote that is never closed would take
the rest of the file for one field."""
_BUFFER = 2**20
_FIRST_LINES = 1_000


class _Lines:
    """The lines of a file, which may be compressed, as bytes; knows where the next begins."""

    def __init__(self, file: InputFile, raw: BinaryIO, offset: int) -> None:
        self._raw = raw
        self._compressed = file.kind.compression is not None
        self._size = max(1, file.size)
        self.offset = offset
        if file.kind.compression:
            unpacked = pa.CompressedInputStream(pa.PythonFile(raw, "r"), file.kind.compression)
            self._stream: BinaryIO = io.BufferedReader(unpacked, _BUFFER)
        else:
            raw.seek(offset)
            self._stream = raw

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> bytes:
        line = self._stream.readline(LONGEST_LINE)
        if not line:
            raise StopIteration
        self.offset += len(line)
        while not line.endswith(b"\n") and len(line) >= LONGEST_LINE:
            rest = self._stream.readline(LONGEST_LINE)
            self.offset += len(rest)
            if len(rest) < LONGEST_LINE:
                break
        return line

    def place(self, row: int) -> Place:
        """Where the next line begins, which is that of `row`."""
        return Place(row, 0 if self._compressed else self.offset)

    def fraction(self) -> float:
        """Of the file that is read."""
        return min(1.0, (self._raw.tell() if self._compressed else self.offset) / self._size)


@contextmanager
def _lines(file: InputFile, start: Place) -> Iterator[_Lines]:
    """The lines of `file` from `start` on; those of a compressed file from its beginning."""
    try:
        with Path(file.path).open("rb") as raw:
            yield _Lines(file, raw, start.offset)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise PipelineError(f"{file.path} cannot be read to its end: {error}.") from error


def csv_columns(file: InputFile) -> list[str]:
    """The names in a CSV file's header.

    Raises:
        PipelineError: there is none, or a name is twice in it.
    """
    with _lines(file, Place()) as lines:
        return _records(file, lines).header


def _records(file: InputFile, lines: _Lines) -> CsvRecords:
    return CsvRecords(lines, file.path, has_header=lines.offset == 0)


def csv_blocks(file: InputFile, columns: Columns, start: Place) -> Iterator[Block]:
    """The rows of a CSV file from `start` on, at least one block; all columns are strings.

    Raises:
        PipelineError: the file is damaged.
    """
    csv.field_size_limit(LONGEST_FIELD)
    header = csv_columns(file)
    text_at = header.index(columns.text)
    schema = pa.schema([(name, pa.string()) for name in header])
    with _lines(file, start) as lines:
        row = 0 if lines.offset == 0 else start.row
        rows: list[list[str]] = []
        rejected: list[Rejected] = []

        def block() -> Block:
            fields: list[tuple[str, ...]] = list(zip(*rows, strict=True)) if rows else [()] * len(header)
            table = pa.table([pa.array(column, pa.string()) for column in fields], schema=schema)
            return Block(table, list(fields[text_at]), rejected, lines.place(row), lines.fraction())

        for record in _records(file, lines):
            row += 1
            if row <= start.row:
                continue  # of a compressed file
            fault = record if isinstance(record, str) else row_fault(record, header, text_at)
            if fault is not None:
                rejected.append(Rejected(row, fault))
            elif not isinstance(record, str):
                rows.append(record)
            if row % BLOCK_ROWS == 0:
                yield block()
                rows, rejected = [], []
        if rows or rejected or row == start.row:
            yield block()


def places(file: InputFile, every: int) -> list[Place]:
    """Where each `every`th row of a text file begins, from the first on, and where the file ends.

    Raises:
        PipelineError: the file is damaged.
    """
    found: list[Place] = []
    with _lines(file, Place()) as lines:
        if file.kind.format is Format.CSV:
            csv.field_size_limit(LONGEST_FIELD)
            rows: Iterator[object] = iter(_records(file, lines))
        else:
            rows = (line for line in lines if not line.isspace())
        row = 0
        start = lines.place(0)
        for row, _ in enumerate(rows, start=1):
            if (row - 1) % every == 0:
                found.append(start)
            if row % every == 0:
                start = lines.place(row)
        return [*(found or [Place()]), lines.place(row)]


def first_object(file: InputFile) -> dict[str, Any] | None:
    """The first object of a JSON Lines file, if there is one in its first lines."""
    with _lines(file, Place()) as lines:
        for line in islice(lines, _FIRST_LINES):
            value = _parsed(line)
            if isinstance(value, dict):
                return value
    return None


def json_blocks(file: InputFile, columns: Columns, start: Place, keep_lines: bool) -> Iterator[Block]:
    """The rows of a JSON Lines file from `start` on, at least one block.

    With `keep_lines` the only column is `LINE`, else each field is one.

    Raises:
        PipelineError: the file is damaged, or a field holds values that are no column together.
    """
    with _lines(file, start) as lines:
        row = start.row if lines.offset else 0
        kept: list[bytes] = []
        objects: list[dict[str, Any]] = []
        rejected: list[Rejected] = []

        def block() -> Block:
            table = pa.table({LINE: pa.array(kept, pa.binary())}) if keep_lines else _table(objects, file, row)
            texts = [item[columns.text] for item in objects]
            return Block(table, texts, rejected, lines.place(row), lines.fraction())

        for line in lines:
            if line.isspace():
                continue
            row += 1
            if row <= start.row:
                continue  # of a compressed file
            value = _parsed(line)
            fault = value if isinstance(value, str) else _object_fault(value, columns)
            if fault is not None:
                rejected.append(Rejected(row, fault))
            elif not isinstance(value, str):
                objects.append(value)
                kept.append(line.strip())
            if row % BLOCK_ROWS == 0:
                yield block()
                kept, objects, rejected = [], [], []
        if objects or rejected or row == start.row:
            yield block()


def _parsed(line: bytes) -> dict[str, Any] | str:
    """The object in a line, or why there is none."""
    if len(line) >= LONGEST_LINE:
        return f"is longer than {LONGEST_LINE:,} bytes"
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"is no JSON: {error}"
    return value if isinstance(value, dict) else "is JSON, but no object"


def _object_fault(value: dict[str, Any], columns: Columns) -> str | None:
    problem = columns.problem(list(value))
    if problem:
        return problem
    text = value[columns.text]
    fault = text_fault(text) if isinstance(text, str) else f"is {'null' if text is None else type(text).__name__}"
    return f"{columns.text!r} {fault}" if fault else None


def _table(objects: list[dict[str, Any]], file: InputFile, row: int) -> pa.Table:
    names = dict.fromkeys(name for item in objects for name in item)
    arrays = {}
    for name in names:
        try:
            arrays[name] = pa.array([item.get(name) for item in objects])
        except (pa.ArrowException, OverflowError) as error:
            raise PipelineError(
                f"{file.path}: {name!r} holds values, up to row {row:,}, that are no column together: {error}. "
                "JSON Lines as the output keep them as they are."
            ) from error
    return pa.table(arrays)
