"""Parses one CSV record, tolerates what has one meaning only, and tells what is wrong with the rest."""

import re
from collections.abc import Callable
from dataclasses import dataclass

LONGEST_FIELD = 2**20
"""Maximum characters of a field that spans lines, ten times the longest text. Without a limit, an unclosed quote would
turn the rest of the file into one field."""

WRONG_NUMBER = "wrong number of fields"
BROKEN_QUOTING = "broken quoting"
TOO_LONG = "too long"

_QUOTED = re.compile(r'[^"]*(?:""[^"]*)*')
"""The content of a quoted field up to its closing quote, or up to the end of the line."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A record, or the reason why its first line is lost."""

    fields: list[str]
    lines: int
    """Number of lines that it takes."""
    fault: str = ""


class CsvParser:
    """Parses records with one delimiter and, if known, one number of columns."""

    def __init__(self, delimiter: str, named: list[bool] | None = None) -> None:
        """`named` tells for each column whether it has a name; None if the columns are not known yet."""
        blanks = "[ ]*" if delimiter == "\t" else "[ \t]*"
        self._delimiter = delimiter
        self._named = named
        self._opening = re.compile(f'{blanks}"')
        self._after = re.compile(f"{blanks}(?={re.escape(delimiter)}|[\r\n]*\\Z)")
        self._tail = re.compile(f"[{re.escape(delimiter)}\\s]*\\Z")

    def is_blank(self, line: str) -> bool:
        """Return whether a line has only delimiters and white space."""
        return self._tail.match(line) is not None

    def parse(self, line_at: Callable[[int], str | None]) -> Parsed:
        """Parse the record that begins with line 0 of `line_at`, which returns None after the last line.

        A record of several lines that is wrong loses only its first line: the next record begins with the second one.
        """
        fields: list[str] = []
        number, position = 0, 0
        line = line_at(0) or ""
        end = len(line.rstrip("\r\n"))
        while True:
            opening = self._opening.match(line, position)
            closed = self._quoted(line_at, number, opening.end()) if opening else None
            if closed and not closed.fault:
                fields += closed.fields
                number, position = number + closed.lines, closed.position
                if closed.lines:
                    line = line_at(number) or ""
                    end = len(line.rstrip("\r\n"))
            elif closed and line[position] == '"':
                return Parsed([], 1, closed.fault)
            else:  # a quote inside an unquoted field is text
                next_delimiter = line.find(self._delimiter, position, end)
                stop = end if next_delimiter < 0 else next_delimiter
                fields.append(line[position:stop])
                position = stop
            if position >= end:
                break
            position += 1
            if number and self._named and len(fields) > len(self._named) and fields[-1].strip():
                break  # else a stray quote on each line would make each record as long as the rest of the file
        fault = self._fit(fields)
        if fault:
            return Parsed([], 1, fault)
        return Parsed(fields, number + 1)

    def _quoted(self, line_at: Callable[[int], str | None], first: int, position: int) -> "_Quoted":
        """Read a quoted field from `position` in line `first` on, after its opening quote."""
        number, size = first, 0
        pieces: list[str] = []
        while (line := line_at(number)) is not None:
            content = _QUOTED.match(line, position)
            stop = content.end() if content else position
            pieces.append(line[position:stop])
            size += stop - position
            if size > LONGEST_FIELD:
                if number == first:
                    return _Quoted([], 0, 0, f"{TOO_LONG}: a field has more than {LONGEST_FIELD:,} characters")
                break
            if stop < len(line):
                after = self._after.match(line, stop + 1)
                if after is None:
                    return _Quoted([], 0, 0, f'{BROKEN_QUOTING}: text after a closing double quote; inside, write ""')
                return _Quoted(["".join(pieces).replace('""', '"')], number - first, after.end(), "")
            number, position = number + 1, 0
        return _Quoted([], 0, 0, f"{BROKEN_QUOTING}: an opening double quote is never closed")

    def _fit(self, fields: list[str]) -> str:
        """Add or remove empty fields of unnamed columns at the end; return the fault if the number is wrong."""
        if self._named is None:
            return ""
        columns = len(self._named)
        found = len(fields)
        while len(fields) > columns and not fields[-1].strip():
            fields.pop()
        while len(fields) < columns and not any(self._named[len(fields) :]):
            fields.append("")
        return "" if len(fields) == columns else f"{WRONG_NUMBER}: {found} instead of {columns}"


@dataclass(frozen=True, slots=True)
class _Quoted:
    fields: list[str]
    lines: int
    position: int
    fault: str
