"""Finds the files to score, with their kind, size and modification time."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import PipelineError
from tables.kinds import SUFFIXES, Kind, kind_of


@dataclass(frozen=True)
class InputFile:
    """A file to score."""

    path: str
    """Absolute path."""
    name: str
    """Name of its output in a folder: its own name, or its path within the input folder."""
    kind: Kind
    size: int
    modified_ns: int


def find_inputs(given: Sequence[str], output: Path) -> list[InputFile]:
    """Return the named files in the given order, each once. Files of a folder or a glob are sorted by name.

    From a folder and its subfolders, all files of a known kind are taken, except `output` and names that begin with `.`
    or `_`.

    Raises:
        PipelineError: a path does not exist or has an unknown kind, or nothing was found; lists all problems.
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
                    problems.append(f"{pattern}: is also the output. Name another output")
            elif kind is None:
                if named:
                    problems.append(f"{pattern}: unknown file type. The name must end in {SUFFIXES}")
            elif not os.access(path, os.R_OK):
                problems.append(f"{path}: permission denied")
            elif real not in found:
                status = path.stat()
                found[real] = InputFile(str(path.absolute()), name, kind, status.st_size, status.st_mtime_ns)
    if not found and not problems:
        problems.append(f"{', '.join(given)}: holds no file whose name ends in {SUFFIXES}")
    if problems:
        raise PipelineError("The inputs have problems:\n" + "\n".join(f"  {problem}" for problem in problems))
    return list(found.values())


def _paths(pattern: str) -> Iterator[tuple[Path, str]]:
    """Yield the files that match a pattern, with their names in an output folder."""
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
        folders[:] = sorted(
            name for name in folders if not name.startswith((".", "_")) and not name.endswith(".partial")
        )
        for name in sorted(files):
            path = Path(parent) / name
            if not name.startswith((".", "_")) and kind_of(path):
                yield path, str(path.relative_to(folder))


def _nothing(path: Path) -> str:
    if path.is_dir():
        return f"holds no file whose name ends in {SUFFIXES}"
    return "no such file" if not glob.has_magic(str(path)) else f"matches no file whose name ends in {SUFFIXES}"
