"""Finds out how a text file is written: encoding, line ends, delimiter, header."""

import re
from codecs import BOM_UTF8
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import dropwhile

from tables.columns import Found, Wanted, find_column, has_header
from tables.csv_parsing import CsvParser
from tables.encodings import UTF_8, Encoding, by_sample, by_start
from tables.errors import TableError
from tables.streams import WIDE_ENCODINGS, ByteStream

HEAD_BYTES = 2**18
_SCANNED_BYTES = 64 * 2**20
"""A file that begins with ASCII is searched so far for the first other character, which tells the encoding."""
_DELIMITERS = (",", ";", "\t", "|")
DELIMITER_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_JUDGED_LINES = 250
_JUDGED_RECORDS = 30
_LINE_END = re.compile(r'"[^"]*"|\r*\n|\r')


@dataclass(frozen=True)
class Layout:
    """How a text file is written."""

    encoding: Encoding
    newline: bytes
    """The last byte of each line: line feed, or carriage return if it is the line end of the whole file."""
    delimiter: str = ""
    """Empty for JSON Lines."""
    columns: tuple[str, ...] = ()
    """Names of a CSV file's columns: those of its header, or positions from 1 on."""
    has_header: bool = True

    @property
    def is_recoded(self) -> bool:
        """True if lines are read in UTF-8 instead of the file's encoding, so that positions in bytes are unknown."""
        return self.encoding.codec in WIDE_ENCODINGS

    @property
    def line_codec(self) -> str:
        """Python's name of the encoding in which lines are read."""
        return UTF_8.codec if self.is_recoded else self.encoding.codec

    @property
    def named(self) -> list[bool]:
        """For each column, whether it has a name."""
        return [bool(column.strip()) for column in self.columns]

    def notes(self, is_delimiter_given: bool) -> list[str]:
        """Return what was assumed, in words."""
        notes = []
        if self.encoding.is_guessed:
            notes.append(f"read as {self.encoding.name}, the encoding that was detected")
        elif self.encoding.name != UTF_8.name:
            notes.append(f"read as {self.encoding.name}")
        if self.delimiter not in ("", ",") and not is_delimiter_given:
            notes.append(f"the delimiter is a {DELIMITER_NAMES[self.delimiter]}")
        if not self.has_header:
            notes.append("the first row is data, because columns are chosen by position")
        return notes


@dataclass(frozen=True)
class Head:
    """The beginning of a text file."""

    encoding: Encoding
    text: str
    is_whole: bool
    """True if it is the whole file."""

    @property
    def newline(self) -> bytes:
        """The last byte of each line."""
        ends = (found[0] for found in _LINE_END.finditer(self.text) if found[0][0] != '"')
        return b"\r" if next(ends, "\n") == "\r" else b"\n"

    @property
    def is_blank(self) -> bool:
        """True if there is nothing to read."""
        return not self.text.strip("\ufeff\0 \t\r\n")

    def lines(self) -> list[str]:
        """Return the lines, with their line ends, without a last one that may be cut off."""
        end = self.newline.decode()
        *lines, last = self.text.removeprefix("\ufeff").replace("\0", "").split(end)
        whole = [f"{line}{end}" for line in lines]
        return [*whole, last] if last and (self.is_whole or not whole) else whole


def read_head(stream: ByteStream) -> Head:
    """Read the beginning of a file, and find its encoding, for which more may be read."""
    start = _read(stream, HEAD_BYTES)
    unmarked = start.removeprefix(BOM_UTF8)
    encoding = by_start(start) or by_sample(_sample(stream, unmarked), is_marked=unmarked != start)
    text = unmarked.decode(encoding.codec, errors="replace")
    return Head(encoding, text, len(start) < HEAD_BYTES)


def csv_layout(head: Head, name: str, delimiter: str | None, wanted: Sequence[Wanted]) -> Layout:
    """Return the layout of a CSV file, in which the columns `wanted` are looked for.

    Raises:
        TableError: the file is empty, or its header is damaged.
    """
    if head.is_blank:
        raise TableError(f"{name} is empty. Its first row must name the columns.")
    lines = head.lines()
    if not head.is_whole and not lines[0].endswith(head.newline.decode()):
        raise TableError(
            f"{name} has no line end in its first {HEAD_BYTES:,} bytes. Its first row must name the columns."
        )
    delimiter = delimiter or _delimiter(lines, wanted)
    parser = CsvParser(delimiter)
    lines = list(dropwhile(parser.is_blank, lines))
    if not lines:
        raise TableError(f"{name} has only blank lines at its start. Its first row must name the columns.")
    parsed = parser.parse(_at(lines))
    if parsed.fault:
        raise TableError(f"{name}: the header cannot be read: {parsed.fault}.")
    named = has_header(parsed.fields, wanted)
    columns = parsed.fields if named else map(str, range(1, len(parsed.fields) + 1))
    return Layout(head.encoding, head.newline, delimiter, tuple(columns), named)


def _read(stream: ByteStream, size: int) -> bytes:
    pieces = b""
    while len(pieces) < size and (piece := stream.read(size - len(pieces))):
        pieces += piece
    return pieces


def _sample(stream: ByteStream, start: bytes) -> bytes:
    """Return whole lines around the first characters that are not ASCII."""
    sample, scanned = start, len(start)
    while sample.isascii() and scanned < _SCANNED_BYTES and (piece := stream.read(HEAD_BYTES)):
        sample = sample[-HEAD_BYTES:] + piece
        scanned += len(piece)
    if sample.isascii():
        return b""
    sample += _read(stream, HEAD_BYTES)
    return sample[: max(sample.rfind(b"\n"), sample.rfind(b"\r")) + 1] or sample


def _delimiter(lines: list[str], wanted: Sequence[Wanted]) -> str:
    """Return the delimiter that finds most of the wanted columns, and then the same number of fields in most rows."""

    def score(delimiter: str) -> tuple[int, float]:
        parser = CsvParser(delimiter)
        at = 0
        counts: list[int] = []
        header: list[str] = []
        for _ in range(_JUDGED_RECORDS):
            if at >= len(lines):
                break
            parsed = parser.parse(_at(lines[at : at + _JUDGED_LINES]))
            if not parsed.fault and not parser.is_blank(lines[at]):
                counts.append(len(parsed.fields))
                if len(counts) == 1:
                    header = parsed.fields
            at += parsed.lines
        if not counts or counts[0] == 1:
            return 0, 0.0
        known = sum(isinstance(find_column(header, column), Found) for column in wanted if column.position is None)
        return known, counts.count(counts[0]) / len(counts)

    return max(_DELIMITERS, key=score)


def _at(lines: Sequence[str]) -> Callable[[int], str | None]:
    return lambda number: lines[number] if number < len(lines) else None
