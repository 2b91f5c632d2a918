"""Joins the parts of a job into its output: CSV, Parquet or JSON Lines. Each file appears only when complete."""

import base64
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scoring.job import Job, will_replace_output
from scoring.parts import Parts
from serving.model_repo.repository import sync
from tables.blocks import LINE
from tables.csv_writing import csv_header, csv_lines
from tables.kinds import Format

_GROUP_ROWS = 131_072
_GROUP_BYTES = 64 * 2**20
"""Maximum rows, and maximum memory, of a Parquet row group."""


def join(job: Job, parts: Parts, escape_formulas: bool = False) -> int:
    """Write the output and the file of rejected rows, in the order of the inputs; return the number of rejected rows.

    Files are written beside the parts and then moved, so that output files are always complete. In CSV, with
    `escape_formulas`, a `'` precedes each cell that a spreadsheet would run as a formula.

    Raises:
        PipelineError: the inputs' columns cannot be combined in one file.
    """
    everything = range(len(job.inputs))
    joined = job.work / "joined-files"
    joined.mkdir(exist_ok=True)
    if job.output_kind:
        _write(job, joined / job.output.name, parts, everything, escape_formulas)
    else:
        for index, file in enumerate(job.inputs):
            (joined / file.name).parent.mkdir(parents=True, exist_ok=True)
            _write(job, joined / file.name, parts, [index], escape_formulas)
    rejected = _join_rejections(parts, everything, job.work / "joined-rejections")
    will_replace_output(job)
    if rejected:
        (job.work / "joined-rejections").replace(job.rejected)
    else:
        job.rejected.unlink(missing_ok=True)  # left from the overwritten output
    if job.output_kind:
        (joined / job.output.name).replace(job.output)
    else:
        for file in job.inputs:
            (job.output / file.name).parent.mkdir(parents=True, exist_ok=True)
            (joined / file.name).replace(job.output / file.name)
    sync(job.output.parent)
    return rejected


def _write(job: Job, path: Path, parts: Parts, files: Sequence[int], escape_formulas: bool) -> None:
    kind = job.kind_of_output(job.inputs[files[0]])
    with ExitStack() as stack:
        writer: _ParquetWriter | _CsvWriter | _JsonWriter
        if kind.format is Format.PARQUET:
            writer = stack.enter_context(_ParquetWriter(path, parts.schema(files)))
        else:
            stream: BinaryIO = stack.enter_context(path.open("wb"))
            if kind.compression:
                stream = stack.enter_context(pa.CompressedOutputStream(pa.PythonFile(stream, "w"), kind.compression))
            if kind.format is Format.CSV:
                writer = _CsvWriter(stream, parts.schema(files), kind.delimiter or ",", escape_formulas)
            else:
                writer = _JsonWriter(stream)
        for table in _tables(job, parts, files, kind.format):
            writer.write(table)
    sync(path)


def _tables(job: Job, parts: Parts, files: Sequence[int], output: Format) -> Iterator[pa.Table]:
    for file in files:
        from_csv = job.inputs[file].kind.format is Format.CSV
        for part in parts.tables(file):
            table = pq.read_table(part)
            yield _with_nulls(table) if from_csv and output is Format.CSV else table


def _with_nulls(table: pa.Table) -> pa.Table:
    """Return the rows with null for each empty string, because most empty cells of a CSV file are missing values."""
    columns = [
        pc.if_else(pc.equal(column, ""), None, column) if pa.types.is_string(column.type) else column
        for column in table.columns
    ]
    return pa.table(columns, names=table.column_names)


def _join_rejections(parts: Parts, files: Sequence[int], path: Path) -> int:
    rejected = 0
    with path.open("wb") as output:
        for file in files:
            for part in parts.rejections(file):
                content = part.read_bytes()
                rejected += content.count(b"\n")
                output.write(content)
    sync(path)
    return rejected


def _aligned(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the rows with all columns of `schema`; missing columns are null."""
    columns = [
        table.column(field.name) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, names=schema.names).cast(schema)


class _ParquetWriter:
    """Writes Parquet; combines small parts into larger row groups."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._waiting: list[pa.Table] = []

    def write(self, table: pa.Table) -> None:
        self._waiting.append(_aligned(table, self._schema))
        rows = sum(len(waiting) for waiting in self._waiting)
        if rows >= _GROUP_ROWS or sum(waiting.nbytes for waiting in self._waiting) >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            group = pa.concat_tables(self._waiting)
            self._waiting = []
            self._writer.write_table(group, row_group_size=max(1, len(group)))

    def __enter__(self) -> "_ParquetWriter":
        return self

    def __exit__(self, error: object, *_: object) -> None:
        try:
            if error is None:
                self._flush()
        finally:
            self._writer.close()


class _CsvWriter:
    """Writes CSV, with quotes only where some reader needs them; null is nothing, an empty string is two quotes."""

    def __init__(self, stream: BinaryIO, schema: pa.Schema, delimiter: str, escape_formulas: bool) -> None:
        self._stream = stream
        self._schema = schema
        self._format = (delimiter, escape_formulas)
        self._stream.write(csv_header(schema.names, *self._format).encode())

    def write(self, table: pa.Table) -> None:
        columns = [_csv_fields(column) for column in _aligned(table, self._schema).columns]
        lines = csv_lines(zip(*columns, strict=True), *self._format)
        self._stream.write("".join(lines).encode())


class _JsonWriter:
    """Writes JSON Lines: one object per line, with the fields of its row."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, table: pa.Table) -> None:
        if LINE in table.column_names:
            lines = table.column(LINE).to_pylist()
            added = map(orjson.dumps, table.drop_columns([LINE]).to_pylist())
            # Insert the fields into the original line, so that its numbers keep their digits.
            rows = [b"%b,%b\n" % (line[:-1].rstrip(), more[1:]) for line, more in zip(lines, added, strict=True)]
        else:
            rows = [orjson.dumps(row, default=_plain, option=orjson.OPT_APPEND_NEWLINE) for row in table.to_pylist()]
        self._stream.write(b"".join(rows))


def _csv_fields(column: pa.ChunkedArray) -> list[Any]:
    values: list[Any] = column.to_pylist()
    if pa.types.is_nested(column.type):
        return [None if value is None else orjson.dumps(value, default=_plain).decode() for value in values]
    if pa.types.is_boolean(column.type):
        return [None if value is None else str(value).lower() for value in values]
    if pa.types.is_temporal(column.type):
        return [None if value is None else _plain(value) for value in values]
    return [_plain(value) if isinstance(value, bytes) else value for value in values]


def _plain(value: Any) -> str:
    """Convert values that neither CSV nor JSON can represent to text; bytes to base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value.isoformat() if hasattr(value, "isoformat") else value)
