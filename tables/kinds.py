"""The formats of files, and how a file's name and first bytes tell them."""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tables.errors import TableError


class Format(StrEnum):
    """Format of a file."""

    CSV = "csv"
    PARQUET = "parquet"
    JSON_LINES = "jsonl"


_FORMATS = {
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
    ".parquet": Format.PARQUET,
    ".pq": Format.PARQUET,
    ".jsonl": Format.JSON_LINES,
    ".ndjson": Format.JSON_LINES,
}
_DELIMITERS = {".tsv": "\t"}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
SUFFIXES = ".csv, .tsv, .parquet, .pq, .jsonl or .ndjson; the text formats also with .gz or .zst after it"

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
PARQUET_MAGIC = b"PAR1"
"""First bytes of Parquet."""
_JSON_OBJECT = re.compile(r"\ufeff?\s*\{")
_JSON_ARRAY = re.compile(r"\ufeff?\s*\[\s*\{")
_JSON_KEY = re.compile(r"[\ufeff\s\[]*\{\s*\"(\\.|[^\"\\])*\"\s*:")
"""Beginning of JSON that no header of a CSV file has."""
_FOREIGN = {
    b"PK\x03\x04": "an Excel workbook or a zip archive",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
}


@dataclass(frozen=True)
class Kind:
    """A format, its compression, and its delimiter."""

    format: Format
    compression: str | None
    """Arrow's name of the compression; None if uncompressed. Parquet compresses itself."""
    delimiter: str | None = None
    """The delimiter that the suffix prescribes: a tab for .tsv. None: it is detected."""


def kind_of(path: Path) -> Kind | None:
    """Return the kind of a file by its suffixes, or None if they are unknown."""
    compression = _COMPRESSIONS.get(path.suffix.lower())
    suffix = (path.with_suffix("") if compression else path).suffix.lower()
    found = _FORMATS.get(suffix)
    if found is None or (compression and found is Format.PARQUET):
        return None
    return Kind(found, compression, _DELIMITERS.get(suffix))


def compression_of(start: bytes, kind: Kind | None) -> str | None:
    """Return the compression of a file by its first bytes, or else by its suffix."""
    by_content = (name for magic, name in _MAGIC.items() if start.startswith(magic))
    return next(by_content, kind.compression if kind else None)


def format_of(start: str, name: str, by_suffix: Format | None) -> Format:
    """Return the format of a text file by its suffix, or if that is unknown, by its beginning.

    Raises:
        TableError: the file is a JSON array, or JSON Lines under the name of a CSV file.
    """
    if by_suffix is Format.JSON_LINES or (by_suffix is Format.CSV and not _JSON_KEY.match(start)):
        return by_suffix
    if _JSON_ARRAY.match(start):
        raise TableError(f"{name} is one JSON array. Write JSON Lines: one object per line.")
    if by_suffix is Format.CSV:
        raise TableError(f"{name} contains JSON and not CSV. If it has one object per line, name it ….jsonl.")
    return Format.JSON_LINES if _JSON_OBJECT.match(start) else Format.CSV


def check_not_foreign(start: bytes, name: str) -> None:
    """Check the first bytes of a file for formats that are not read.

    Raises:
        TableError: the file is a workbook or an archive.
    """
    for magic, description in _FOREIGN.items():
        if start.startswith(magic):
            raise TableError(f"{name} is {description}. Save it as CSV.")
