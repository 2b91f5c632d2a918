"""Reads the records of a CSV file one by one, so that a bad one spoils no other."""

import csv
from collections import Counter
from collections.abc import Iterable, Iterator

from errors import PipelineError
from serving.texts import text_fault

_SHOWN_CHARACTERS = 100


class CsvRecords:
    """The records of a CSV file; each row as its fields, or as the reason why it is none."""

    def __init__(self, lines: Iterable[bytes], name: str, has_header: bool = True) -> None:
        """Read `lines` of the file `name`, of which the first is the header, unless they are of a later part.

        Raises:
            PipelineError: there is no header, or a name is twice in it.
        """
        self._lines = lines
        self._undecodable: str | None = None
        self._reader = csv.reader(self._decoded(), strict=True)
        if has_header:
            self.header = self._read_header(name)

    @property
    def line(self) -> int:
        """The number, from 1, of the line that was read last."""
        return self._reader.line_num

    def __iter__(self) -> Iterator[list[str] | str]:
        """Each row that is not blank."""
        while True:
            first_line = self._reader.line_num
            try:
                fields: list[str] | str = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                lines = self._reader.line_num - first_line
                fields = f"is no CSV: {error}" + (f" (in {lines:,} lines)" if lines > 1 else "")
            if self._undecodable is not None:
                fields, self._undecodable = self._undecodable, None
            if fields:
                yield fields

    def _decoded(self) -> Iterator[str]:
        for line in self._lines:
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                self._undecodable = f"is not UTF-8: {error.reason} at byte {error.start} of its line"
                yield line.decode(errors="replace")

    def _read_header(self, name: str) -> list[str]:
        fields = next(iter(self), None)
        if fields is None:
            raise PipelineError(f"{name} is empty; a CSV file needs a header.")
        if isinstance(fields, str):
            raise PipelineError(f"The header of {name} {fields}.")
        fields[0] = fields[0].removeprefix("\ufeff")
        column, count = Counter(fields).most_common(1)[0]
        if count > 1:
            raise PipelineError(f"{name} has two columns {column[:_SHOWN_CHARACTERS]!r}.")
        return fields


def row_fault(record: list[str], header: list[str], text_at: int) -> str | None:
    """Why a row cannot be classified whose text is the field `text_at`; none where it can."""
    if len(record) != len(header):
        return f"has {len(record)} fields; the header has {len(header)}"
    fault = text_fault(record[text_at])
    return f"{header[text_at]!r} {fault}" if fault else None
