"""The decoded lines of a CSV file around the record that is being read."""

import io
import re
from codecs import BOM_UTF8
from collections.abc import Sequence

from tables.lines import LONGEST_LINE, LineReader

UNDECODABLE = "undecodable"
TOO_LONG = "too long"


class Window:
    """Decoded lines, of which those up to `at` have been read."""

    def __init__(self, lines: LineReader, encoding: str, delimiter: str, offset: int) -> None:
        """Read `lines`, which begin at the byte `offset` of the file."""
        blanks = " " if delimiter == "\t" else " \t"
        self._spaced_quote = re.compile(f'(?:\\A|[\r\n{re.escape(delimiter)}])[{blanks}]+"')
        self._reader = lines
        self._encoding = encoding
        self._offset = offset
        self._sizes: list[int] = []
        self._ended = False
        self.lines: Sequence[str] = []
        self.at = 0
        """Index in `lines` of the next line."""
        self.first = 1
        """Line number in the file, or from `offset` on, of the first of `lines`."""
        self.faults: dict[int, str] = {}
        """By index, the reason why a line is damaged."""
        self.has_spaced_quotes = False
        """True if one of `lines` has a quote after a delimiter and a blank, which the csv module takes for text."""
        self.nuls = 0
        """Number of NUL characters that were removed."""

    @property
    def offset(self) -> int:
        """Position in the file of the next line."""
        return self._offset + sum(self._sizes[: self.at])

    def fill(self) -> bool:
        """Have at least one line that is not read; return False at the end of the file."""
        if self.at < len(self.lines):
            return True
        self._offset = self.offset
        self.first += self.at
        self.lines, self._sizes, self.faults, self.at, self.has_spaced_quotes = [], [], {}, 0, False
        return self._more()

    def line_at(self, number: int) -> str | None:
        """Return the line `number` after the next one; None after the end of the file."""
        while self.at + number >= len(self.lines):
            if not self._more():
                return None
        return self.lines[self.at + number]

    def clean_until(self, end: int) -> int:
        """Return the index of the first damaged line from `at` on, at most `end`."""
        return next((index for index in range(self.at, end) if index in self.faults), end) if self.faults else end

    def is_quote_spaced(self, text: str) -> bool:
        """Return whether a quote follows a delimiter, or the beginning of a line, and a blank."""
        return (' "' in text or '\t"' in text) and self._spaced_quote.search(text) is not None

    def _more(self) -> bool:
        chunk = None if self._ended else self._reader.read()
        if chunk is None:
            self._ended = True
            return False
        start = len(self.lines)
        is_marked = self.first == 1 and not start and self._offset == 0 and chunk.data.startswith(BOM_UTF8)
        data = chunk.data.removeprefix(BOM_UTF8) if is_marked else chunk.data
        try:
            text = data.decode(self._encoding)
            lines = self._split(text)
        except UnicodeDecodeError:
            raw = self._reader.split(data)
            lines = [self._decoded(line, start + index) for index, line in enumerate(raw)]
            sizes = list(map(len, raw))
            text = "".join(lines)
        else:
            sizes = list(map(len, lines if len(text) == len(data) else self._reader.split(data)))
        if is_marked and sizes:
            sizes[0] += len(BOM_UTF8)
        if chunk.too_long:
            self.faults[start] = f"{TOO_LONG}: the line has more than {LONGEST_LINE:,} bytes"
            lines, sizes = [""], [chunk.size]
        if "\0" in text:
            self.nuls += text.count("\0")
            lines = [line.replace("\0", "") for line in lines]
        self.has_spaced_quotes = self.has_spaced_quotes or self.is_quote_spaced(text)
        self.lines = lines if not start else [*self.lines, *lines]
        self._sizes += sizes
        return True

    def _split(self, text: str) -> list[str]:
        if self._reader.newline == b"\n":
            return io.StringIO(text, newline="\n").readlines()
        *lines, last = text.split("\r")
        return [f"{line}\r" for line in lines] + [last] * bool(last)

    def _decoded(self, line: bytes, index: int) -> str:
        try:
            return line.decode(self._encoding)
        except UnicodeDecodeError as error:
            byte = line[error.start]
            self.faults[index] = f"{UNDECODABLE}: byte 0x{byte:02x} at position {error.start} is not {self._encoding}"
            return line.decode(self._encoding, errors="replace")
