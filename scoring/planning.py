"""Divides a job's inputs into spans that several workers can score at the same time."""

from collections.abc import Iterator
from dataclasses import dataclass

from scoring.job import Job
from scoring.reading import table_of
from tables.blocks import Place
from tables.kinds import Format
from tables.parquet_files import count_rows
from tables.text_blocks import places


@dataclass(frozen=True)
class Span:
    """The rows of an input that become one part."""

    file: int
    start: Place
    rows: int


def plan(job: Job) -> Iterator[Span]:
    """Yield all spans of all inputs, in order. An input without rows has one empty span.

    Raises:
        PipelineError: an input is damaged.
    """
    for file, found in enumerate(job.inputs):
        table = table_of(found, job.columns)
        if table.kind.format is Format.PARQUET:
            rows = count_rows(table.source, table.name)
            starts = [Place(row) for row in range(0, rows, job.part_rows)] or [Place()]
            ends = [*(start.row for start in starts[1:]), rows]
        else:
            *starts, end = places(table, job.part_rows)
            ends = [*(start.row for start in starts[1:]), end.row]
        for start, end_row in zip(starts, ends, strict=True):
            yield Span(file, start, end_row - start.row)
