"""Reads the records of a CSV file one by one, so that an invalid record does not affect others."""

import csv
from collections.abc import Iterator

from tables.csv_parsing import CsvParser
from tables.csv_window import Window
from tables.layout import Layout
from tables.lines import LineReader
from tables.streams import ByteStream

_MOST_LINES = 4_096


class CsvRecords:
    """The records of a CSV file. Each is a list of fields, or the reason why the row is invalid."""

    def __init__(self, stream: ByteStream, layout: Layout, offset: int = 0) -> None:
        """Read `stream`, whose header `layout` knows, from the byte `offset` on."""
        if offset:
            stream.seek(offset)
        self._window = Window(LineReader(stream, layout.newline), layout.line_codec, layout.delimiter, offset)
        self._delimiter = layout.delimiter
        self._columns = len(layout.columns)
        self._parser = CsvParser(layout.delimiter, layout.named)
        self.invalid_line = ""
        """First line of the last row that was invalid."""
        if layout.has_header and not offset:
            self._skip_header()

    @property
    def offset(self) -> int:
        """Position in an uncompressed file of the next record."""
        return self._window.offset

    @property
    def nuls(self) -> int:
        """Number of NUL characters that were removed so far."""
        return self._window.nuls

    def __iter__(self) -> Iterator[tuple[int, list[str] | str]]:
        """Yield each row that is not blank, with the number of its first line.

        The csv module reads as many lines at once as have recently been faultless. It stops at the first record that it
        cannot read, or that has another number of fields, and the tolerant parser reads that one.
        """
        window = self._window
        columns = self._columns
        lines_at_once = _MOST_LINES
        while window.fill():
            start = begin = window.at
            first = window.first
            end = window.clean_until(min(start + lines_at_once, len(window.lines)))
            reader = csv.reader(window.lines[start:end], delimiter=self._delimiter, strict=True)
            has_spaced_quotes = window.has_spaced_quotes
            try:
                for fields in reader:
                    after = start + reader.line_num
                    if len(fields) != columns:
                        if fields:
                            break
                    elif not fields[0].strip() and self._is_blank(begin, after):
                        fields = []
                    elif has_spaced_quotes and any(map(window.is_quote_spaced, window.lines[begin:after])):
                        break
                    window.at = after
                    if fields:
                        yield first + begin, fields
                    begin = after
            except csv.Error:
                pass
            if window.at >= end > start:
                lines_at_once = min(2 * lines_at_once, _MOST_LINES)
                continue
            line = window.first + window.at
            record = self._tolerant()
            lines_at_once = 1
            if record:
                yield line, record

    def _tolerant(self) -> list[str] | str:
        """Read one record; an empty list stands for a blank line."""
        window = self._window
        fault = window.faults.get(window.at, "")
        if self._parser.is_blank(window.lines[window.at]) and not fault:
            window.at += 1
            return []
        self.invalid_line = window.lines[window.at]
        parsed = self._parser.parse(window.line_at)
        faults = [
            window.faults[index] for index in range(window.at, window.at + parsed.lines) if index in window.faults
        ]
        window.at += parsed.lines
        return next(iter(faults), "") or parsed.fault or parsed.fields

    def _skip_header(self) -> None:
        window = self._window
        while window.fill() and self._parser.is_blank(window.lines[window.at]):
            window.at += 1
        if window.fill():
            window.at += CsvParser(self._delimiter).parse(window.line_at).lines

    def _is_blank(self, begin: int, end: int) -> bool:
        return all(map(self._parser.is_blank, self._window.lines[begin:end]))
