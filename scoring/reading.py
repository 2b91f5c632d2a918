"""Reads the inputs of a job."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from common.errors import PipelineError
from scoring.inputs import InputFile
from scoring.job import Columns, Job
from tables.blocks import Block, Place, nuls_removed, with_last
from tables.columns import TEXT, Wanted
from tables.json_lines import JsonLines
from tables.kinds import Format
from tables.opening import Table, inspect, open_records
from tables.parquet_files import check_texts, parquet_blocks
from tables.text_blocks import csv_blocks, json_blocks, unique_names

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A block and its origin."""

    file: int
    """Index of the input in the job."""
    block: Block
    last: bool
    """True for the last block of the file."""


def check_input(file: InputFile, columns: Columns) -> list[str]:
    """Check the beginning of a file to find out whether it can be scored; return what was assumed, in words.

    Raises:
        PipelineError: the file cannot be scored.
    """
    table = table_of(file, columns)
    if table.kind.format is Format.JSON_LINES:
        with open_records(table, JsonLines) as (lines, _):
            names = next((list(value) for _, _, value in lines if isinstance(value, dict)), [])
    else:
        names = unique_names(table.columns) if table.kind.format is Format.CSV else list(table.columns)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise PipelineError(f"{file.path} has two columns {twice[0]!r}. Rename one.")
    if problem := columns.problem(names):
        raise PipelineError(f"{file.path} {problem}")
    if table.kind.format is Format.PARQUET:
        check_texts(table.source, table.name, table.columns[table.found[0]])
    elif not table.found and file.size:
        raise PipelineError(f"{file.path} has no JSON object in its first lines. JSON Lines need one object per line.")
    return list(table.notes)


@lru_cache(maxsize=1_024)
def table_of(file: InputFile, columns: Columns) -> Table:
    """Return how an input is written, and the column of its texts.

    Raises:
        PipelineError: the file is damaged, or the column cannot be found.
    """
    return inspect(Path(file.path), file.path, [Wanted(TEXT, columns.text, "--text-column")], file.kind)


def read(job: Job, file: int, start: Place) -> Iterator[Source]:
    """Yield the blocks of an input from `start` on, at least one; log at its end how many characters were removed.

    Raises:
        PipelineError: the file is damaged.
    """
    found = job.inputs[file]
    table = table_of(found, job.columns)
    if table.kind.format is Format.CSV:
        blocks = csv_blocks(table, start)
    elif table.kind.format is Format.PARQUET:
        blocks = parquet_blocks(table.source, table.name, table.columns[table.found[0]], start)
    else:
        blocks = json_blocks(table, start, job.keeps_lines(found), job.columns.problem)
    nuls = 0
    for block, last in with_last(blocks):
        nuls = block.nuls
        yield Source(file, block, last)
    if note := nuls_removed(nuls):
        log.info("%s: %s.", found.path, note)
