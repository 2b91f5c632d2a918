"""Reads an input, whatever its format."""

from collections.abc import Iterator
from dataclasses import dataclass

from errors import PipelineError
from scoring.blocks import Block, Columns, Place, with_last
from scoring.inputs import Format, InputFile
from scoring.job import Job
from scoring.parquet_files import parquet_blocks, parquet_columns
from scoring.text_files import csv_blocks, csv_columns, first_object, json_blocks


@dataclass(frozen=True)
class Source:
    """A block and where it is from."""

    file: int
    """Which of the job's inputs."""
    block: Block
    last: bool
    """Whether the file ends with it."""


def check_input(file: InputFile, columns: Columns) -> None:
    """See that a file can be scored, as far as its beginning tells.

    Raises:
        PipelineError: it cannot.
    """
    if file.kind.format is Format.CSV:
        columns.check(csv_columns(file), file.path)
    elif file.kind.format is Format.PARQUET:
        columns.check(parquet_columns(file, columns.text), file.path)
    elif (first := first_object(file)) is not None:
        columns.check(list(first), f"The first row of {file.path}")
    elif file.size:
        raise PipelineError(f"{file.path} holds no JSON object in its first lines; JSON Lines have one a line.")


def read(job: Job, file: int, start: Place) -> Iterator[Source]:
    """The blocks of an input from `start` on, at least one.

    Raises:
        PipelineError: the file is damaged.
    """
    found = job.inputs[file]
    if found.kind.format is Format.CSV:
        blocks = csv_blocks(found, job.columns, start)
    elif found.kind.format is Format.PARQUET:
        blocks = parquet_blocks(found, job.columns, start)
    else:
        blocks = json_blocks(found, job.columns, start, job.keeps_lines(found))
    for block, last in with_last(blocks):
        yield Source(file, block, last)
