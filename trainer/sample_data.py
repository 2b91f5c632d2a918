"""Makes sample data from human ratings in the source distribution of `vaderSentiment` 3.3.2.

The ratings come from C.J. Hutto and E.E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
Social Media Text", ICWSM 2014: each text was rated from -4 to 4 by about twenty people. They are under the MIT licence,
© 2016 C.J. Hutto, whose notice must accompany every copy: it is written beside each data file as `<file>.license`.
"""

import csv
import hashlib
import html
import io
import os
import random
import tarfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import PipelineError
from common.pypi_download import VADER, fetch

Domain = Literal["film", "product", "tweet", "editorial"]

_TABLES: dict[Domain, str] = {
    "film": "movieReviewSnippets",
    "product": "amazonReviewSnippets",
    "tweet": "tweets",
    "editorial": "nytEditorialSnippets",
}
REVIEW_DOMAINS: tuple[Domain, ...] = ("film", "product")
_DISTRIBUTION = VADER.filename.removesuffix(".tar.gz")
_RATINGS_ARCHIVE = f"{_DISTRIBUTION}/additional_resources/hutto_ICWSM_2014.tar.gz"
_LICENSE = f"{_DISTRIBUTION}/LICENSE.txt"
_NOTICE = ".license"
CLEAR_RATING = 0.5
"""Minimum distance of a rating from zero. Below it, the raters disagree or see no sentiment."""
_VALIDATION_SHARE = 0.1

_Row = tuple[str, str]
"""Text and label."""


@dataclass(frozen=True)
class SampleCounts:
    """Rows written, by label."""

    train: Mapping[str, int]
    val: Mapping[str, int]


def read_ratings(domain: Domain) -> list[tuple[str, float]]:
    """Read the texts of a domain, cleaned, with their mean ratings from -4 (negative) to 4 (positive).

    Raises:
        PipelineError: the source distribution cannot be downloaded.
    """
    with tarfile.open(fileobj=io.BytesIO(_distributed_file(_RATINGS_ARCHIVE))) as archive:
        table = _member(archive, f"hutto_ICWSM_2014/{_TABLES[domain]}_GroundTruth.txt").decode()
    # Not `splitlines`, and no csv reader: quotes and rarer line separators are part of the texts.
    rows = [line.split("\t") for line in table.split("\r\n") if line]
    return [(_clean(text), float(rating)) for _, rating, text in rows]


def write_sample_data(train_path: Path, val_path: Path, seed: int) -> SampleCounts:
    """Write film and product sentences with clear sentiment to two CSV files with the columns `text` and `label`.

    The labels are `Positive` and `Negative`. A tenth of each label in each domain is for validation. Ignoring letter
    case, no text occurs twice. The same seed gives the same bytes.

    Raises:
        PipelineError: a file with other content exists, a file cannot be written, or the source distribution cannot be
            downloaded.
    """
    if os.path.realpath(train_path) == os.path.realpath(val_path):
        raise PipelineError(f"{train_path} cannot be both the training and the validation file. Use two files.")
    train, val = _split(seed)
    notice = _notice()
    files = {train_path: _csv(train), val_path: _csv(val)}
    notices = {_notice_of(path): notice + _mark(content) for path, content in files.items()}
    _write_all(notices | files)
    return SampleCounts(train=Counter(label for _, label in train), val=Counter(label for _, label in val))


def _split(seed: int) -> tuple[list[_Row], list[_Row]]:
    labels: dict[str, set[str]] = {}
    strata: dict[tuple[Domain, str], dict[str, str]] = {}
    for domain in REVIEW_DOMAINS:
        for text, rating in read_ratings(domain):
            if abs(rating) >= CLEAR_RATING:
                label = "Positive" if rating > 0 else "Negative"
                key = text.casefold()
                if key not in labels:
                    strata.setdefault((domain, label), {})[key] = text
                labels.setdefault(key, set()).add(label)
    train: list[_Row] = []
    val: list[_Row] = []
    shuffle = random.Random(seed).shuffle
    for (_, label), texts in strata.items():
        rows = [(text, label) for key, text in texts.items() if len(labels[key]) == 1]
        shuffle(rows)
        cut = round(len(rows) * _VALIDATION_SHARE)
        val += rows[:cut]
        train += rows[cut:]
    shuffle(train)
    shuffle(val)
    return train, val


def _clean(text: str) -> str:
    # Some texts were escaped twice ("&amp;#38;"), and '' stands for a double quote.
    return " ".join(html.unescape(html.unescape(text)).replace("''", '"').split())


def _csv(rows: list[_Row]) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("text", "label"))
    writer.writerows(rows)
    return file.getvalue().encode()


def is_sample(path: Path) -> bool:
    """Return whether the file at `path` is one of sample data as it was written."""
    try:
        return _notice_of(path).read_bytes().endswith(_mark(path.read_bytes()))
    except OSError:
        return False


def _notice_of(path: Path) -> Path:
    """Return the path of the notice beside a file of sample data."""
    return path.with_name(f"{path.name}{_NOTICE}")


def _mark(content: bytes) -> bytes:
    """Return the last line of a notice, by which `is_sample` recognizes the file."""
    return f"\nSHA-256 of the file: {hashlib.sha256(content).hexdigest()}\n".encode()


def _notice() -> bytes:
    source = (
        f"The texts come from the source distribution of {VADER.requirement} on PyPI, file {_RATINGS_ARCHIVE}; "
        "the labels are made from its ratings.\n\n"
    )
    return source.encode() + _distributed_file(_LICENSE).replace(b"\r\n", b"\n")


def _distributed_file(name: str) -> bytes:
    with tarfile.open(fetch(VADER)) as archive:
        return _member(archive, name)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None  # the checksum was verified, so the member exists
    return file.read()


def _write_all(files: Mapping[Path, bytes]) -> None:
    """Write all files or none: first temporary files, then renames."""
    parts: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            if path.suffix != _NOTICE and path.exists() and path.read_bytes() != content:
                raise PipelineError(
                    f"{path} exists and is not the sample data of this seed. Move it away, or name other files in "
                    "SENTIMENT_TRAIN_DATA and SENTIMENT_VAL_DATA."
                )
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            parts[path] = path.with_name(f".{path.name}.{os.getpid()}.part")
            parts[path].write_bytes(content)
        for path, part in parts.items():
            part.replace(path)
    except OSError as error:
        raise PipelineError(f"The sample data cannot be written: {error.filename}: {error.strerror}.") from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
