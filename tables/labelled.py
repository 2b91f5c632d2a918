"""Reads the rows of a file that holds texts and labels."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from common.wording import shortened
from tables.blocks import nuls_removed
from tables.columns import LABEL, TEXT, ColumnChoice, Wanted
from tables.csv_parsing import BROKEN_QUOTING, TOO_LONG, WRONG_NUMBER
from tables.csv_records import CsvRecords
from tables.csv_window import UNDECODABLE
from tables.errors import TableError
from tables.json_lines import NOT_AN_OBJECT, NOT_JSON, JsonLines
from tables.kinds import Format
from tables.opening import Table, inspect, open_records
from tables.parquet_files import Undecodable, parquet_values

__all__ = ["FAULTS", "ColumnChoice", "LabelledFile", "LabelledRow", "open_labelled"]

_LONGEST_BEGINNING = 200
"""Maximum characters of a line that are shown."""
FAULTS = (WRONG_NUMBER, BROKEN_QUOTING, NOT_JSON, NOT_AN_OBJECT, UNDECODABLE, TOO_LONG)
"""Kinds of `LabelledRow.fault`."""


class LabelledRow(NamedTuple):
    """One row of a file. A named tuple, because a frozen dataclass takes a third of the time of reading to create."""

    row: int
    """Row number as in a spreadsheet: a header is row 1; blank lines do not count."""
    line: int
    """First line of the row in the file, counted from 1; equals `row` in Parquet."""
    text: str
    """The text without surrounding white space and NUL characters; empty if there is none. Of a row that cannot be
    read, the beginning of its line; empty in Parquet."""
    label: str
    """The label without surrounding white space; empty if there is none."""
    fault: str = ""
    """Why the row cannot be read: one of `FAULTS`, a colon, and details. Empty if it can."""


class LabelledFile:
    """A file that is open for reading."""

    def __init__(self, table: Table) -> None:
        """Read `table`, whose text and label columns have been found."""
        self._table = table
        self.encoding = table.layout.encoding.name if table.layout else ""
        """As in "utf-8" or "windows-1252"; empty for Parquet."""
        self.delimiter = table.layout.delimiter if table.layout else ""
        """Empty for JSON Lines and Parquet."""
        self.columns = list(table.columns)
        self.text_column, self.label_column = (table.columns[index] for index in table.found)
        self.notes = list(table.notes)
        """What was assumed, in words; complete when all rows have been read."""

    def rows(self) -> Iterator[LabelledRow]:
        """Yield each row that is not blank.

        Raises:
            TableError: the file is damaged.
        """
        if self._table.layout is None:
            return self._parquet_rows()
        return self._csv_rows() if self._table.kind.format is Format.CSV else self._json_rows()

    def _csv_rows(self) -> Iterator[LabelledRow]:
        text_at, label_at = self._table.found
        layout = self._table.layout
        first = 2 if layout and layout.has_header else 1
        with open_records(self._table, CsvRecords) as (records, _):
            for row, (line, record) in enumerate(records, start=first):
                if isinstance(record, str):
                    yield LabelledRow(row, line, _beginning(records.invalid_line), "", record)
                else:
                    yield LabelledRow(row, line, record[text_at].strip(), record[label_at].strip())
            self._note_nuls(records.nuls)

    def _json_rows(self) -> Iterator[LabelledRow]:
        nuls = 0
        with open_records(self._table, JsonLines) as (records, _):
            for row, (line, content, value) in enumerate(records, start=1):
                if isinstance(value, str):
                    yield LabelledRow(row, line, _beginning(content.decode(errors="replace")), "", value)
                    continue
                text, label = _plain(value.get(self.text_column)), _plain(value.get(self.label_column))
                nuls += text.count("\0") + label.count("\0")
                yield LabelledRow(row, line, _clean(text), _clean(label))
            self._note_nuls(records.nuls + nuls)

    def _parquet_rows(self) -> Iterator[LabelledRow]:
        nuls = 0
        values = parquet_values(self._table.source, self._table.name, (self.text_column, self.label_column))
        for row, pair in enumerate(values, start=1):
            faults = [value for value in pair if isinstance(value, Undecodable)]
            if faults:
                yield LabelledRow(row, row, "", "", str(faults[0]))
                continue
            text, label = map(_plain, pair)
            nuls += text.count("\0") + label.count("\0")
            yield LabelledRow(row, row, _clean(text), _clean(label))
        self._note_nuls(nuls)

    def _note_nuls(self, count: int) -> None:
        if note := nuls_removed(count):
            self.notes.append(note)


@contextmanager
def open_labelled(path: Path, choice: ColumnChoice) -> Iterator[LabelledFile]:
    """Open a file that holds texts and labels.

    Raises:
        TableError: the file cannot be read, or its columns are not found.
    """
    wanted = (
        Wanted(TEXT, choice.text, "SENTIMENT_TEXT_COLUMN"),
        Wanted(LABEL, choice.label, "SENTIMENT_LABEL_COLUMN"),
    )
    try:
        table = inspect(path, str(path), wanted)
        if not table.found:
            raise TableError(f"{path} has no row that is a JSON object.")
        yield LabelledFile(table)
    except FileNotFoundError:
        raise TableError(f"{path}: no such file. Set SENTIMENT_TRAIN_DATA and SENTIMENT_VAL_DATA.") from None
    except IsADirectoryError:
        raise TableError(f"{path} is a directory. Name a file.") from None
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}.") from error


def _plain(value: Any) -> str:
    """Return a value of JSON or Parquet as text; nothing for null, and for values with parts."""
    if value is None or isinstance(value, dict | list):
        return ""
    if isinstance(value, float):
        return "" if value != value else str(int(value)) if value.is_integer() else str(value)
    return value if isinstance(value, str) else str(value)


def _beginning(line: str) -> str:
    """Return a line without surrounding white space, and cut if it is long."""
    return shortened(line.strip(), _LONGEST_BEGINNING)


def _clean(text: str) -> str:
    return text.replace("\0", "").strip()
