"""Joins the parts of a job to its output: CSV, Parquet or JSON Lines, each complete before it is in its place."""

import base64
import csv
import io
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from scoring.blocks import LINE
from scoring.inputs import Format, Kind
from scoring.job import Job, will_replace_output
from scoring.parts import Parts
from serving.repository import sync

_GROUP_ROWS = 131_072
_GROUP_BYTES = 64 * 2**20
"""A row group of Parquet is written when it has so many rows, or takes so much memory."""


def join(job: Job, parts: Parts) -> int:
    """Write the output and the file of rejected rows, in the order of the inputs; returns the number of rejected rows.

    What is written while this runs lies with the parts, so whoever sees an output file sees all of it.

    Raises:
        PipelineError: the inputs' columns do not go into one file.
    """
    everything = range(len(job.inputs))
    joined = job.work / "joined-files"
    joined.mkdir(exist_ok=True)
    if job.output_kind:
        _write(job.output_kind, joined / job.output.name, parts, everything)
    else:
        for index, file in enumerate(job.inputs):
            (joined / file.name).parent.mkdir(parents=True, exist_ok=True)
            _write(file.kind, joined / file.name, parts, [index])
    rejected = _join_rejections(parts, everything, job.work / "joined-rejections")
    will_replace_output(job)
    if rejected:
        (job.work / "joined-rejections").replace(job.rejected)
    else:
        job.rejected.unlink(missing_ok=True)  # of an output that is overwritten
    if job.output_kind:
        (joined / job.output.name).replace(job.output)
    else:
        for file in job.inputs:
            (job.output / file.name).parent.mkdir(parents=True, exist_ok=True)
            (joined / file.name).replace(job.output / file.name)
    sync(job.output.parent)
    return rejected


def _write(kind: Kind, path: Path, parts: Parts, files: Sequence[int]) -> None:
    tables = (pq.read_table(part) for file in files for part in parts.tables(file))
    with ExitStack() as stack:
        writer: _ParquetWriter | _CsvWriter | _JsonWriter
        if kind.format is Format.PARQUET:
            writer = stack.enter_context(_ParquetWriter(path, parts.schema(files)))
        else:
            stream: BinaryIO = stack.enter_context(path.open("wb"))
            if kind.compression:
                stream = stack.enter_context(pa.CompressedOutputStream(pa.PythonFile(stream, "w"), kind.compression))
            if kind.format is Format.CSV:
                writer = stack.enter_context(_CsvWriter(stream, parts.schema(files)))
            else:
                writer = _JsonWriter(stream)
        for table in tables:
            writer.write(table)
    sync(path)


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
    """The same rows with all columns of `schema`; those that they lack are null."""
    columns = [
        table.column(field.name) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, names=schema.names).cast(schema)


class _ParquetWriter:
    """Row groups of a good size, though parts are small."""

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
    """Fields in quotes where they need them."""

    def __init__(self, stream: BinaryIO, schema: pa.Schema) -> None:
        self._schema = schema
        self._text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        self._writer = csv.writer(self._text, lineterminator="\n")
        self._writer.writerow(schema.names)

    def write(self, table: pa.Table) -> None:
        columns = [_csv_fields(column) for column in _aligned(table, self._schema).columns]
        self._writer.writerows(zip(*columns, strict=True))

    def __enter__(self) -> "_CsvWriter":
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self._text.flush()
            self._text.detach()  # the stream beneath is closed by who opened it


class _JsonWriter:
    """Objects, a line each; each has the fields that its row has."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, table: pa.Table) -> None:
        if LINE in table.column_names:
            lines = table.column(LINE).to_pylist()
            added = map(orjson.dumps, table.drop_columns([LINE]).to_pylist())
            # Within the object that the line is, which then stays as it was, whatever its numbers and their digits.
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
    """As text, what neither CSV nor JSON has a form for; bytes in base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value.isoformat() if hasattr(value, "isoformat") else value)
