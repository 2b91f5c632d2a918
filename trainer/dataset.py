"""Reads the two CSV files that a model learns from, and tells everything that is wrong with them at once."""

import codecs
import csv
import difflib
import hashlib
import io
import os
import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from errors import PipelineError

MIN_TRAIN_ROWS = 10
"""A class of fewer texts is memorised, not learned: most batches of 32 would hold none of them."""

MIN_VAL_ROWS = 5
"""With fewer texts of a class, a single one moves its recall, and so macro F1, by more than 20 points."""

_MAX_LABELS = 1000
"""More labels than that are texts read as labels, and to compare them all with each other would take minutes."""

_TOLD_PER_KIND = 5
_SHOWN_CHARACTERS = 60


class DatasetError(PipelineError):
    """The data files cannot be trained on; `problems` holds a line for each reason."""

    def __init__(self, problems: list[str]) -> None:
        """Keep the problems and list them in the message."""
        super().__init__("The data cannot be trained on:\n" + "\n".join(f"  {problem}" for problem in problems))
        self.problems = problems


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and their labels, of the same length and in the order of the file."""

    texts: list[str]
    labels: list[str]


@dataclass(frozen=True)
class Dataset:
    """Checked data: no text is twice in it, and both parts hold the same labels."""

    train: LabelledTexts
    val: LabelledTexts
    labels: tuple[str, ...]
    """All labels, sorted."""
    fingerprint: str
    """SHA-256 of both parts as they are here, whatever the order of their rows and the form of the CSV files."""
    repairs: list[str]
    """A line for each kind of thing that was put right without asking."""


def load_dataset(train_path: Path, val_path: Path) -> Dataset:
    """Read and check a training and a validation file with the columns `text` and `label`.

    Other columns, blank rows, a byte order mark and white space around texts and labels are passed over in silence. Put
    right and told in `repairs`: the letter case of a column name, a row that repeats another with the same label, and
    a training text that is also a validation text, which is taken out of training so that validation stays honest.

    Raises:
        DatasetError: anything else is wrong; all problems of both files are told, of each kind the first five.
    """
    train, val = _DataFile(train_path), _DataFile(val_path)
    if os.path.realpath(train_path) == os.path.realpath(val_path):  # `resolve` fails on a loop of links
        train.problem("same file", "is both the training and the validation data; name two files")
        raise DatasetError(train.problems())
    with _any_field_size():
        train.read()
        val.read()
    shared = [text for text in train.texts if text in val.texts]
    if shared:
        train.repairs.append(
            f"{train.path}: {_count(len(shared), 'row')} taken out of training, the text being in {val.path} too "
            f"(first: {train.place(shared[0])} is {val.place(shared[0])} there)"
        )
    train.check_classes(val, MIN_TRAIN_ROWS, taken_out=shared)
    val.check_classes(train, MIN_VAL_ROWS, taken_out=())
    if problems := train.problems() + val.problems():
        raise DatasetError(problems)
    for text in shared:
        del train.texts[text]
    learned, judged = train.labelled_texts(), val.labelled_texts()
    return Dataset(
        learned, judged, tuple(sorted(val.counts)), fingerprint(learned, judged), train.repairs + val.repairs
    )


def read_labelled_texts(path: Path, labels: tuple[str, ...]) -> LabelledTexts:
    """Read one file of the same form, all of whose labels must be among `labels`.

    Raises:
        DatasetError: anything is wrong; all problems are told, of each kind the first five.
    """
    file = _DataFile(path)
    with _any_field_size():
        file.read()
    for label in file.counts:
        if label not in labels:
            told = f"{_shown(label)} is no label of the model{_nearest(label, labels)}; it has {', '.join(labels)}"
            file.problem("unknown label", told, f"{file.first_rows[label]}, column label")
    if problems := file.problems():
        raise DatasetError(problems)
    return file.labelled_texts()


class _DataFile:
    """One CSV file while it is read and checked: what it holds, what was put right, what is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: dict[str, int] = {}
        """Texts in the order of the file, each with its index in the three lists that follow."""
        self.labels: list[str] = []
        self.rows = array("Q")
        self.lines = array("Q")
        self.counts: Counter[str] = Counter()
        """Rows by label; a row whose text has a problem counts, so that one mistake is not told as two."""
        self.first_rows: dict[str, str] = {}
        self.repairs: list[str] = []
        self._repeated: list[str] = []
        self._lost = 0
        """Rows that could not be read; each of them might have had any label."""
        self._problem_counts: Counter[str] = Counter()
        self._problems: defaultdict[str, list[str]] = defaultdict(list)

    def problem(self, kind: str, problem: str, place: str = "") -> None:
        self._problem_counts[kind] += 1
        if len(self._problems[kind]) < _TOLD_PER_KIND:
            self._problems[kind].append(f"{self.path}{place and ', '}{place}: {problem}")

    def problems(self) -> list[str]:
        told: list[str] = []
        for kind, problems in self._problems.items():
            told += problems
            if rest := self._problem_counts[kind] - len(problems):
                told.append(f"{self.path}: … and {rest:,} more ({kind})")
        return told

    def place(self, text: str) -> str:
        return _place(self.rows[self.texts[text]], self.lines[self.texts[text]])

    def labelled_texts(self) -> LabelledTexts:
        return LabelledTexts(list(self.texts), [self.labels[index] for index in self.texts.values()])

    def read(self) -> None:
        try:
            with self.path.open("rb") as file:
                self._parse(file)
        except IsADirectoryError:
            self.problem("directory", "is a directory; name a CSV file")
        except FileNotFoundError:
            self.problem("no file", "no such file; SENTIMENT_TRAIN_DATA and SENTIMENT_VAL_DATA name the files")
        except OSError as error:
            self.problem("unreadable", f"cannot be read: {error.strerror}")

    def _parse(self, file: BinaryIO) -> None:
        if foreign := _foreign_format(file.read(4)):
            self.problem("format", f"{foreign}; save it as CSV in UTF-8")
            return
        file.seek(0)
        records = self._records(file)
        _, _, header = next(records, (0, 0, []))
        if not header and not self._problems:
            self.problem("empty file", "is empty; its first row must name the columns text and label")
        if self._problems:
            return
        text_column, label_column = self._find_column("text", header), self._find_column("label", header)
        if text_column is None or label_column is None:
            return
        for row, line, fields in records:
            if len(fields) == len(header):
                self._add(row, line, fields[text_column].strip(), sys.intern(fields[label_column].strip()))
            else:
                self._lost += 1
                counts = f"{_count(len(fields), 'field')} under {_count(len(header), 'column name')}"
                hint = "put a text with commas in double quotes"
                self.problem("number of fields", f"{counts}; {hint}", _place(row, line))
        if not self.counts and not self._problems:
            self.problem("no rows", "has column names but no rows under them")
        if self._repeated:
            count = _count(len(self._repeated), "row")
            self.repairs.append(f"{self.path}: {count} taken out as repetitions (first: {self._repeated[0]})")

    def _records(self, file: BinaryIO) -> Iterator[tuple[int, int, list[str]]]:
        """Rows that are not blank, with the row number of a spreadsheet and the number of their first line."""
        damage: list[tuple[str, str]] = []
        reader = csv.reader(_decoded_lines(file, damage), skipinitialspace=True, strict=True)
        row = 0
        while True:
            row, line = row + 1, reader.line_num + 1
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                fields = []
                if "unexpected end" in str(error):
                    damage.append(("quotes", "a double quote that opens here is never closed"))
                else:
                    damage.append(
                        ("quotes", 'a double quote inside a quoted text must be doubled (""), or one is missing')
                    )
            for kind, problem in damage:
                self.problem(kind, problem, _place(row, line))
            if damage:
                self._lost += 1
            elif "".join(fields).strip():
                yield row, line, fields
            damage.clear()

    def _find_column(self, name: str, header: list[str]) -> int | None:
        found = [index for index, title in enumerate(header) if title.strip().casefold() == name]
        if len(found) == 1:
            if header[found[0]].strip() != name:
                self.repairs.append(f"{self.path}, row 1: column {header[found[0]]!r} is read as {name}")
            return found[0]
        titles = ", ".join(_shown(title) for title in header)
        if found:
            self.problem("columns", f"{len(found)} columns are named {name}; keep one", "row 1")
        else:
            delimiter = next((d for d in ";\t|" if len(header) == 1 and d in header[0]), None)
            hint = f"; separate the columns with commas, not {delimiter!r}" if delimiter else ""
            self.problem("columns", f"there is no column {name}; the columns are {titles}{hint}", "row 1")
        return None

    def _add(self, row: int, line: int, text: str, label: str) -> None:
        index = self.texts.get(text)
        if text and label and index is None:
            self.texts[text] = len(self.labels)
            self.labels.append(label)
            self.rows.append(row)
            self.lines.append(line)
        elif not text:
            self.problem("empty text", "empty", f"{_place(row, line)}, column text")
        elif index is not None and label == self.labels[index]:
            self._repeated.append(f"{_place(row, line)} repeats {self.place(text)}")
            return
        elif index is not None and label:
            told = f"{_shown(text)} is {_shown(label)} here but {_shown(self.labels[index])} in {self.place(text)}"
            self.problem("contradiction", f"{told}; keep one of them", f"{_place(row, line)}, column label")
        if label:
            self.counts[label] += 1
            self.first_rows.setdefault(label, _place(row, line))
        else:
            self.problem("no label", f"no label for {_shown(text)}", f"{_place(row, line)}, column label")

    def check_classes(self, other: "_DataFile", minimum: int, taken_out: Iterable[str]) -> None:
        """Check the labels by themselves and against the other file, `taken_out` being texts that will not count."""
        if len(self.counts) > _MAX_LABELS:
            self.problem("labels", f"{len(self.counts):,} different labels; are the texts there?", "column label")
        if not self.counts or max(len(self.counts), len(other.counts)) > _MAX_LABELS:
            return
        if len(self.counts) == 1 and not self._lost:
            self.problem("one label", f"only {_shown(*self.counts)}; there must be two or more", "column label")
        for label, twin in _twins(label for label in self.counts if label in other.counts or not other.counts):
            told = f"{_shown(label)} and {_shown(twin)} differ by letter case or white space only; write them alike"
            self.problem("labels", told, "column label")
        left = self.counts.copy()
        left.subtract(self.labels[self.texts[text]] for text in taken_out)
        for label, rows in left.items():
            place = f"{self.first_rows[label]}, column label"
            if other.counts and label not in other.counts:
                nearest = _nearest(label, other.counts)
                self.problem("label in one file", f"{_shown(label)} is not in {other.path}{nearest}", place)
            elif rows + self._lost < minimum:
                after = f", {_count(self.counts[label] - rows, 'repetition')} of validation texts taken out"
                after = after if rows < self.counts[label] else ""
                told = f"{_shown(label)} has {_count(rows, 'row')}{after}; at least {minimum} are needed here"
                self.problem("class too small", told, "column label")


@contextmanager
def _any_field_size() -> Iterator[None]:
    # The limit, 128 KiB, belongs to the whole process.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _foreign_format(start: bytes) -> str:
    if start == b"PK\x03\x04":
        return "is an Excel workbook or a zip archive"
    if start[:2] == b"\x1f\x8b":
        return "is compressed with gzip"
    utf16 = start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    return "is UTF-16 or binary, not UTF-8" if utf16 or b"\0" in start else ""


def _decoded_lines(file: BinaryIO, damage: list[tuple[str, str]]) -> Iterator[str]:
    """Lines with their ends; what is not UTF-8 text is added to `damage`, and replaced so that the row goes on."""
    offset = 0
    for raw in file:
        line = raw.decode(errors="replace")
        if "\ufffd" in line:
            try:
                raw.decode()
            except UnicodeDecodeError as error:
                byte = raw[error.start : error.start + 1]
                guess = f"in Windows-1252 or Latin-1 it would be {byte.decode('cp1252', errors='replace')!r}"
                told = f"byte 0x{byte.hex()} at offset {offset + error.start:,} of the file is not UTF-8 ({guess})"
                damage.append(("encoding", f"{told}; save the file in UTF-8"))
        if "\0" in line:
            told = f"there is a NUL byte at offset {offset + raw.index(0):,} of the file; remove it"
            damage.append(("NUL bytes", told))
            line = line.replace("\0", "\ufffd")  # Python 3.10's csv module gives up on it
        if offset == 0:
            line = line.removeprefix("\ufeff")
        offset += len(raw)
        if "\r" in line.rstrip("\r\n"):
            yield from io.StringIO(line, newline="")  # a lone carriage return ends a line too
        else:
            yield line


def fingerprint(*parts: LabelledTexts) -> str:
    """SHA-256 of labelled texts, part by part; the order within a part does not matter."""
    digest = hashlib.sha256()
    for part in parts:
        # No text holds NUL, so no two rows look alike; sorted digests take less memory than sorted texts.
        digests = sorted(
            hashlib.sha256(f"{label}\0{text}".encode()).digest()
            for text, label in zip(part.texts, part.labels, strict=True)
        )
        digest.update(hashlib.sha256(b"".join(digests)).digest())
    return digest.hexdigest()


def _twins(labels: Iterable[str]) -> Iterator[tuple[str, str]]:
    forms: dict[str, str] = {}
    for label in labels:
        first = forms.setdefault(_form(label), label)
        if first != label:
            yield first, label


def _nearest(label: str, others: Iterable[str]) -> str:
    for other in others:
        if _form(other) == _form(label):
            return f"; it differs from {_shown(other)} by letter case or white space only"
    nearest = difflib.get_close_matches(label, others, n=1)
    return f"; did you mean {_shown(nearest[0])}?" if nearest else ""


def _form(label: str) -> str:
    return " ".join(label.split()).casefold()


def _place(row: int, line: int) -> str:
    return f"row {row}" if row == line else f"row {row} (line {line})"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
