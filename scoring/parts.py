"""What is scored already: Parquet files beside the output, whose names are the journal.

A part is written under another name, synced and renamed, so that its name says that all of it is there. It holds the
rows of one input between two places, and its name tells both: `FILE-ROW-ENDROW-ENDOFFSET-more|last.parquet`. Which of
these rows were rejected is in a file beside it, which is complete before the part is there.
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

from errors import PipelineError
from scoring.blocks import Place, Rejected
from scoring.inputs import Format
from scoring.job import Job
from serving.repository import sync

_NAME = re.compile(r"(\d+)-(\d+)-(\d+)-(\d+)-(more|last)\.parquet")


@dataclass(frozen=True, order=True)
class Part:
    """Rows of one input."""

    file: int
    """Which of the job's inputs."""
    row: int
    """Rows before it."""
    end: Place
    last: bool
    """Whether the input ends with it."""

    @property
    def name(self) -> str:
        """Of its file."""
        more = "last" if self.last else "more"
        return f"{self.file:06d}-{self.row:012d}-{self.end.row:012d}-{self.end.offset:015d}-{more}.parquet"

    @classmethod
    def named(cls, name: str) -> "Part | None":
        """The part in a file of this name; none where it is no part's."""
        found = _NAME.fullmatch(name)
        if not found:
            return None
        file, row, end_row, end_offset = map(int, found.groups()[:4])
        return cls(file, row, Place(end_row, end_offset), found[5] == "last")


class Parts:
    """The parts of one job; threads may write some at the same time, and so may other processes."""

    def __init__(self, job: Job) -> None:
        """Look at what is there."""
        self._job = job
        self._folder = job.work
        self._lock = threading.Lock()
        self._schema: pa.Schema | None = None
        self._known: dict[int, list[Part]] = {}
        self._starts: set[tuple[int, int]] = set()
        self.refresh()

    def refresh(self) -> None:
        """Look again at what is there: what leads up from an input's first row without a gap."""
        found = sorted(filter(None, (Part.named(path.name) for path in self._folder.iterdir())))
        self._known = {}
        self._starts = {(part.file, part.row) for part in found}
        for part in found:
            before = self._known.setdefault(part.file, [])
            if part.row == (before[-1].end.row if before else 0):
                before.append(part)

    def of(self, file: int) -> list[Part]:
        """The parts of an input, in order, up to the first that is not there."""
        return self._known.get(file, [])

    def has(self, file: int, row: int) -> bool:
        """Whether there is a part that begins at a row of an input, also after a gap."""
        return (file, row) in self._starts

    def rows(self) -> int:
        """Rows of the inputs, bad ones among them, that are done."""
        return sum(parts[-1].end.row for parts in self._known.values() if parts)

    def write(self, part: Part, table: pa.Table, rejected: Sequence[Rejected]) -> None:
        """Write a part, with the columns that are added.

        Raises:
            PipelineError: its columns do not go into one file with those of others.
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
        """The files of an input's parts."""
        return [self._folder / part.name for part in self.of(file)]

    def rejections(self, file: int) -> list[Path]:
        """The files of an input's rejected rows."""
        paths = (path.with_suffix(".rejected") for path in self.tables(file))
        return [path for path in paths if path.exists()]

    def schema(self, files: Sequence[int]) -> pa.Schema:
        """The columns of these inputs' parts together.

        Raises:
            PipelineError: they do not go into one file.
        """
        schemas = [pq.read_schema(path) for file in files for path in self.tables(file)]
        return unified(list(dict.fromkeys(schemas)))

    def _check_schema(self, schema: pa.Schema) -> None:
        """See at once what would stop the job at its end."""
        kind = self._job.output_kind
        if kind is None or kind.format is Format.JSON_LINES:
            return  # no input shares a file with another, or each row has its own fields
        with self._lock:
            if self._schema is None:
                files = [file for file in range(len(self._job.inputs)) if self.of(file)]
                self._schema = self.schema(files) if files else schema
            self._schema = unified([self._schema, schema])


def unified(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The columns of all, each of a type that holds the values of all.

    Raises:
        PipelineError: there is no such type.
    """
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise PipelineError(
            f"The inputs' columns do not go into one file: {error}. Score them into a folder, or into files of their "
            "own; JSON Lines into JSON Lines, which keep each line as it is."
        ) from error
