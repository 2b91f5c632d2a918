"""The finished parts of a job: Parquet files beside the output, whose names record the progress.

A part holds the rows of one input between two positions, which are in its name:
`FILE-ROW-ENDROW-ENDOFFSET-more|last.parquet`. It is written under a temporary name, synced and renamed, so a file with
such a name is complete. Rejected rows are listed in a file beside it, which is written first.
"""

import json
import re
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import PipelineError
from scoring.job import Job
from serving.model_repo.repository import sync
from tables.blocks import Place, Rejected
from tables.kinds import Format

_NAME = re.compile(r"(\d+)-(\d+)-(\d+)-(\d+)-(more|last)\.parquet")


@dataclass(frozen=True, order=True)
class Part:
    """Consecutive rows of one input."""

    file: int
    """Index of the input in the job."""
    row: int
    """Number of rows before it."""
    end: Place
    last: bool
    """True for the last part of the input."""

    @property
    def name(self) -> str:
        """Name of the part's file."""
        more = "last" if self.last else "more"
        return f"{self.file:06d}-{self.row:012d}-{self.end.row:012d}-{self.end.offset:015d}-{more}.parquet"

    @classmethod
    def named(cls, name: str) -> "Part | None":
        """Return the part with this file name, or None if the name is not that of a part."""
        found = _NAME.fullmatch(name)
        if not found:
            return None
        file, row, end_row, end_offset = map(int, found.groups()[:4])
        return cls(file, row, Place(end_row, end_offset), found[5] == "last")


class Parts:
    """The parts of one job. Several threads and processes may write parts at the same time."""

    def __init__(self, job: Job) -> None:
        """Find the existing parts."""
        self._job = job
        self._folder = job.work
        self._lock = threading.Lock()
        self._schema: pa.Schema | None = None
        self._known: dict[int, list[Part]] = {}
        self._starts: set[tuple[int, int]] = set()
        self.refresh()

    def refresh(self) -> None:
        """Read the existing parts again from the disk."""
        found = sorted(filter(None, (Part.named(path.name) for path in self._folder.iterdir())))
        self._known = {}
        self._starts = {(part.file, part.row) for part in found}
        for part in found:
            before = self._known.setdefault(part.file, [])
            if part.row == (before[-1].end.row if before else 0):
                before.append(part)

    def of(self, file: int) -> list[Part]:
        """Return the parts of an input in order, up to the first gap."""
        return self._known.get(file, [])

    def has(self, file: int, row: int) -> bool:
        """Return whether a part begins at this row of an input, possibly after a gap."""
        return (file, row) in self._starts

    def rows(self) -> int:
        """Return the number of rows that are done, up to each input's first gap, including rejected rows."""
        return sum(parts[-1].end.row for parts in self._known.values() if parts)

    def write(self, part: Part, table: pa.Table, rejected: Sequence[Rejected]) -> None:
        """Write a part with the added columns.

        Raises:
            PipelineError: its columns cannot be combined with those of other parts in one file.
        """
        self._check_schema(table.schema)
        path = self._folder / part.name
        if rejected:
            file = self._job.inputs[part.file].path
            lines = [json.dumps({"file": file, **asdict(row)}, ensure_ascii=False) + "\n" for row in rejected]
            path.with_suffix(".rejected").write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
            sync(path.with_suffix(".rejected"))
        partial = path.with_suffix(f".{uuid4().hex}.new")  # another process may write it too
        pq.write_table(table, partial, compression="zstd")
        sync(partial)
        partial.rename(path)
        sync(self._folder)

    def tables(self, file: int) -> list[Path]:
        """Return the files of an input's parts."""
        return [self._folder / part.name for part in self.of(file)]

    def rejections(self, file: int) -> list[Path]:
        """Return the files with an input's rejected rows."""
        paths = (path.with_suffix(".rejected") for path in self.tables(file))
        return [path for path in paths if path.exists()]

    def schema(self, files: Sequence[int]) -> pa.Schema:
        """Return the combined columns of the parts of these inputs.

        Raises:
            PipelineError: the columns cannot be combined in one file.
        """
        schemas = [pq.read_schema(path) for file in files for path in self.tables(file)]
        return unified(list(dict.fromkeys(schemas)))

    def _check_schema(self, schema: pa.Schema) -> None:
        """Raise an error now if the columns would make the job fail at its end."""
        kind = self._job.output_kind
        if kind is None or kind.format is Format.JSON_LINES:
            return  # each input has its own file, or each row its own fields
        with self._lock:
            if self._schema is None:
                files = [file for file in range(len(self._job.inputs)) if self.of(file)]
                self._schema = self.schema(files) if files else schema
            self._schema = unified([self._schema, schema])


def unified(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the combined columns, each of a type that can represent all values.

    Raises:
        PipelineError: a column has no such type.
    """
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise PipelineError(
            f"The inputs' columns do not fit into one file: {error}. Score them into a folder, or into files of their "
            "own; JSON Lines into JSON Lines, which keep each line as it is."
        ) from error
