"""A scoring job. After an interruption, an equal job resumes, and a different one is refused."""

import fcntl
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import PipelineError
from scoring.inputs import InputFile
from tables.kinds import SUFFIXES, Format, Kind, kind_of

PART_ROWS = 4_096
"""Rows between two points from which an interrupted job resumes: about 3 seconds (MiniLM, two cores)."""

_DESCRIPTION = "job.json"
_JOINED = "joined"


@dataclass(frozen=True)
class Columns:
    """The columns that a job reads and adds."""

    text: str | None
    """The column with the texts: a name, a position, or None for the usual names."""
    added: tuple[str, str, str]
    """Names of the added columns for label, score and version."""

    def problem(self, names: Sequence[str]) -> str | None:
        """Return the problem with the columns of a file or a row; None if there is none."""
        clashes = [name for name in self.added if name in names]
        if clashes:
            return (
                f"already has a column {clashes[0]!r}. Choose other names for the added columns (--prefix predicted_)."
            )
        return None


@dataclass(frozen=True)
class Job:
    """The inputs, output, columns and version of a job."""

    inputs: tuple[InputFile, ...]
    output: Path
    """Absolute path of a file, or, without a known suffix, of a folder with one file per input."""
    columns: Columns
    version: int
    part_rows: int

    @property
    def work(self) -> Path:
        """The folder beside the output with the finished parts."""
        return self.output.with_name(f"{self.output.name}.partial")

    @property
    def rejected(self) -> Path:
        """The file with the rows that cannot be classified."""
        return self.output.with_name(f"{self.output.name}.rejected.jsonl")

    @property
    def output_kind(self) -> Kind | None:
        """The kind of the output file; None if the output is a folder."""
        return kind_of(self.output)

    def kind_of_output(self, file: InputFile) -> Kind:
        """Return the kind of the output file for an input's rows."""
        return self.output_kind or file.kind

    def keeps_lines(self, file: InputFile) -> bool:
        """Return whether an input's lines are written unchanged, with three more fields."""
        return file.kind.format is self.kind_of_output(file).format is Format.JSON_LINES


@contextmanager
def begun(job: Job, overwrite: bool) -> Iterator[None]:
    """Start or resume the job. No other process works on the same output during the block.

    Raises:
        PipelineError: the output exists or has a bad name, an interrupted job differs, or another process writes it.
    """
    _check_output(job)
    fresh = not job.work.exists()
    job.work.mkdir(parents=True, exist_ok=True)
    with (job.work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PipelineError(
                f"{job.output} is being written by another process. Wait for it, or name another output."
            ) from error
        description = job.work / _DESCRIPTION
        begun_as = _read(description)
        if begun_as is not None and begun_as["job"] == _as_json(job):
            if not (overwrite or begun_as["overwrite"] or (job.work / _JOINED).exists()):
                _check_absent(job)
        else:
            try:
                _check_new(job, begun_as, overwrite)
            except PipelineError:
                if fresh:
                    shutil.rmtree(job.work)
                raise
            for left_over in job.work.iterdir():
                if left_over.is_dir():
                    shutil.rmtree(left_over)
                elif left_over.name != "lock":
                    left_over.unlink()
            partial = description.with_suffix(".new")
            content = {"job": _as_json(job), "overwrite": overwrite}
            partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
            partial.replace(description)
        yield


def _check_output(job: Job) -> None:
    if not job.output.parent.is_dir():
        raise PipelineError(f"{job.output.parent} is not a folder, so {job.output.name} cannot be written there.")
    if job.output_kind is not None:
        if job.output.is_dir():
            raise PipelineError(f"{job.output} is a folder. Name a file, or a folder without such a suffix.")
        return
    if job.output.suffix and not job.output.is_dir():
        raise PipelineError(
            f"{job.output} has an unknown suffix. Use one of {SUFFIXES} for a file, and no suffix for a folder."
        )
    names = [file.name for file in job.inputs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise PipelineError(
            f"Two inputs have the name {twice[0]} and would be the same file in {job.output}. Rename one."
        )


def _check_new(job: Job, begun_as: dict[str, Any] | None, overwrite: bool) -> None:
    if overwrite:
        return
    if begun_as is not None:
        raise PipelineError(
            f"{job.work} contains the parts of an interrupted job that differs: "
            f"{_difference(begun_as['job'], _as_json(job))}. Finish that job, or add --overwrite to start again."
        )
    _check_absent(job)


def _check_absent(job: Job) -> None:
    if job.output.exists() and (job.output.is_file() or any(job.output.iterdir())):
        raise PipelineError(f"{job.output} exists. Name another output, or add --overwrite.")


def will_replace_output(job: Job) -> None:
    """Record that the output belongs to this job, in case the job is killed before it cleans up."""
    (job.work / _JOINED).touch()


def _difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    if then["version"] != now["version"]:
        return f"it used version {then['version']}, this one would use {now['version']} (--version)"
    before: dict[str, Any] = {file["path"]: file for file in then["inputs"]}
    after: dict[str, Any] = {file["path"]: file for file in now["inputs"]}
    for path in before.keys() | after.keys():
        if path not in after:
            return f"{path} was among its inputs"
        if path not in before:
            return f"{path} was not among its inputs"
        if before[path] != after[path]:
            return f"{path} has changed since"
    if list(before) != list(after):
        return "its inputs came in another order"
    return f"its columns were {then['columns']}, now they are {now['columns']}"


def _as_json(job: Job) -> dict[str, Any]:
    description = {
        "inputs": [asdict(file) for file in job.inputs],
        "columns": asdict(job.columns),
        "version": job.version,
        "part_rows": job.part_rows,
    }
    value: dict[str, Any] = json.loads(json.dumps(description))
    return value


def _read(description: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(description.read_text(encoding="utf-8"))
        return value
    except FileNotFoundError:
        return None


def remove_work(job: Job) -> None:
    """Clean up when the output is complete."""
    shutil.rmtree(job.work)
