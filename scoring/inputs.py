"""Finds the files to score: their formats, compression and what tells that one has changed."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from errors import PipelineError


class Format(str, Enum):
    """What a file holds, by its suffix."""

    CSV = "csv"
    PARQUET = "parquet"
    JSON_LINES = "jsonl"


_FORMATS = {
    ".csv": Format.CSV,
    ".parquet": Format.PARQUET,
    ".pq": Format.PARQUET,
    ".jsonl": Format.JSON_LINES,
    ".ndjson": Format.JSON_LINES,
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
SUFFIXES = ".csv, .parquet, .pq, .jsonl or .ndjson; the text formats also with .gz or .zst after it"


@dataclass(frozen=True)
class Kind:
    """A format, and how it is compressed; Parquet compresses itself."""

    format: Format
    compression: str | None
    """As Arrow names it."""


@dataclass(frozen=True)
class InputFile:
    """A file to score."""

    path: str
    """Absolute."""
    name: str
    """That its output has in a folder: its own, or its path in the folder that was given."""
    kind: Kind
    size: int
    modified_ns: int


def kind_of(path: Path) -> Kind | None:
    """The kind of file that a path names by its suffixes; none where it names no kind that is known."""
    compression = _COMPRESSIONS.get(path.suffix.lower())
    found = _FORMATS.get((path.with_suffix("") if compression else path).suffix.lower())
    if found is None or (compression and found is Format.PARQUET):
        return None
    return Kind(found, compression)


def find_inputs(given: Sequence[str], output: Path) -> list[InputFile]:
    """The files that are named, in the order given; those of a folder or a glob sorted by name, and each once.

    Of a folder, all files of a kind that is known are taken, those in its folders too; names that begin with `.` or
    `_` are passed over, and so is what is written to `output`.

    Raises:
        PipelineError: a path does not exist or is of no known kind, or nothing was found; all problems are told.
    """
    found: dict[str, InputFile] = {}
    problems: list[str] = []
    written = os.path.realpath(output)
    for pattern in given:
        paths = list(_paths(pattern))
        if not paths:
            problems.append(f"{pattern}: {_nothing(Path(pattern))}")
        for path, name in paths:
            real = os.path.realpath(path)
            kind = kind_of(path)
            named = str(path) == pattern
            if real == written or real.startswith(f"{written}{os.sep}"):
                if named:
                    problems.append(f"{pattern}: is the output too; name another")
            elif kind is None:
                if named:
                    problems.append(f"{pattern}: its kind is not known by its name, which must end in {SUFFIXES}")
            elif not os.access(path, os.R_OK):
                problems.append(f"{path}: may not be read")
            elif real not in found:
                status = path.stat()
                found[real] = InputFile(str(path.absolute()), name, kind, status.st_size, status.st_mtime_ns)
    if not found and not problems:
        problems.append(f"{', '.join(given)}: holds no file whose name ends in {SUFFIXES}")
    if problems:
        raise PipelineError("The inputs are wrong:\n" + "\n".join(f"  {problem}" for problem in problems))
    return list(found.values())


def _paths(pattern: str) -> Iterator[tuple[Path, str]]:
    """The files that a pattern names, and their names in a folder of outputs."""
    path = Path(pattern)
    if path.is_file():
        yield path, path.name
    elif path.is_dir():
        yield from _files_below(path)
    else:
        for match in sorted(map(Path, glob.glob(pattern, recursive=True))):  # noqa: PTH207 - patterns may be absolute
            if match.is_file() and kind_of(match):
                yield match, match.name


def _files_below(folder: Path) -> Iterator[tuple[Path, str]]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")) and not _is_work(name))
        for name in sorted(files):
            path = Path(parent) / name
            if not name.startswith((".", "_")) and kind_of(path):
                yield path, str(path.relative_to(folder))


def _is_work(name: str) -> bool:
    return name.endswith(".partial")


def _nothing(path: Path) -> str:
    if path.is_dir():
        return f"holds no file whose name ends in {SUFFIXES}"
    return "no such file" if not glob.has_magic(str(path)) else f"matches no file whose name ends in {SUFFIXES}"
