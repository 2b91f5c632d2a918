"""What a job is: equal jobs go on where one was cut off, others are refused."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from errors import PipelineError
from scoring.blocks import Columns
from scoring.inputs import SUFFIXES, Format, InputFile, Kind, kind_of

PART_ROWS = 4_096
"""Rows of an input between two points that a killed job goes on from: about 3 seconds (MiniLM, two cores)."""

_DESCRIPTION = "job.json"
_JOINED = "joined"


@dataclass(frozen=True)
class Job:
    """Inputs, and what is to come of them."""

    inputs: tuple[InputFile, ...]
    output: Path
    """Absolute: a file, or a folder of a file for each input where it has no suffix that is known."""
    columns: Columns
    version: int
    part_rows: int

    @property
    def work(self) -> Path:
        """The folder, beside the output, of what is scored already."""
        return self.output.with_name(f"{self.output.name}.partial")

    @property
    def rejected(self) -> Path:
        """The file of the rows that could not be classified."""
        return self.output.with_name(f"{self.output.name}.rejected.jsonl")

    @property
    def output_kind(self) -> Kind | None:
        """The kind of the one output file; none where the output is a folder."""
        return kind_of(self.output)

    def kind_of_output(self, file: InputFile) -> Kind:
        """The kind of file that an input's rows are written to."""
        return self.output_kind or file.kind

    def keeps_lines(self, file: InputFile) -> bool:
        """Whether an input's lines are written as they are, with three fields more."""
        return file.kind.format is self.kind_of_output(file).format is Format.JSON_LINES


@contextmanager
def begun(job: Job, overwrite: bool) -> Iterator[None]:
    """Begin the job or go on with it; nobody else works on the same output until the end of the block.

    Raises:
        PipelineError: the output exists, another job that was cut off left its work here, or one is under way.
    """
    _check_output(job)
    fresh = not job.work.exists()
    job.work.mkdir(parents=True, exist_ok=True)
    with (job.work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PipelineError(f"{job.output} is being written by another process.") from error
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
        raise PipelineError(f"{job.output.parent} is no folder, so {job.output.name} cannot be written there.")
    if job.output_kind is not None:
        if job.output.is_dir():
            raise PipelineError(f"{job.output} is a folder; name a file, or a folder without such a suffix.")
        return
    if job.output.suffix and not job.output.is_dir():
        raise PipelineError(
            f"{job.output} names no kind of file that can be written ({SUFFIXES}), nor a folder: that has no suffix."
        )
    names = [file.name for file in job.inputs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise PipelineError(f"Two inputs are named {twice[0]}, and would be one file in {job.output}.")


def _check_new(job: Job, begun_as: dict[str, Any] | None, overwrite: bool) -> None:
    if overwrite:
        return
    if begun_as is not None:
        raise PipelineError(
            f"{job.work} holds the work of a job that was cut off, and it was another: "
            f"{_difference(begun_as['job'], _as_json(job))}. Run that one to its end, or add --overwrite to start anew."
        )
    _check_absent(job)


def _check_absent(job: Job) -> None:
    if job.output.exists() and (job.output.is_file() or any(job.output.iterdir())):
        raise PipelineError(f"{job.output} exists; name another output, or add --overwrite.")


def will_replace_output(job: Job) -> None:
    """Remember that from now on the output is this job's, should it be killed before it has tidied up."""
    (job.work / _JOINED).touch()


def _difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    if then["version"] != now["version"]:
        return f"it scored with version {then['version']}, this one would with {now['version']} (--version)"
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
    """Tidy up after the output is in its place."""
    shutil.rmtree(job.work)
