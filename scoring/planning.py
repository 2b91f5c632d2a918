"""Divides a job's inputs before it begins, for those who score several spans of them at the same time."""

from collections.abc import Iterator
from dataclasses import dataclass

from scoring.blocks import Place
from scoring.inputs import Format
from scoring.job import Job
from scoring.parquet_files import count_rows
from scoring.text_files import places


@dataclass(frozen=True)
class Span:
    """Rows of an input that become one part."""

    file: int
    start: Place
    rows: int


def plan(job: Job) -> Iterator[Span]:
    """Every span of every input, in order; an input without rows is one span without.

    Raises:
        PipelineError: an input is damaged.
    """
    for file, found in enumerate(job.inputs):
        if found.kind.format is Format.PARQUET:
            rows = count_rows(found)
            starts = [Place(row) for row in range(0, rows, job.part_rows)] or [Place()]
            ends = [*(start.row for start in starts[1:]), rows]
        else:
            *starts, end = places(found, job.part_rows)
            ends = [*(start.row for start in starts[1:]), end.row]
        for start, end_row in zip(starts, ends, strict=True):
            yield Span(file, start, end_row - start.row)
