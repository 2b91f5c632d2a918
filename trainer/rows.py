"""The rows of one data file: which can be used, which repeat others, and which contradict others."""

import re
import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from common.settings import Settings
from common.wording import counted
from serving.model_repo.bundle import RowCounts
from serving.model_repo.texts import MAX_CHARACTERS, text_fault
from tables.errors import TableError
from tables.labelled import ColumnChoice, LabelledRow, open_labelled
from tables.labels import Labels, shown
from trainer.rejected import RejectedRows

EMPTY_TEXT = "empty text"
UNUSABLE_TEXT = "unusable text"
MISSING_LABEL = "missing label"
UNUSABLE_LABEL = "unusable label"
SPREADSHEET_ERROR = "spreadsheet error"
CONTRADICTION = "contradictory labels"
SMALL_CLASS = "class too small"
UNKNOWN_LABEL = "unknown label"

_FEW_LABELS = 10
"""So many labels are usual, also in a small file of contradictory rows."""
_NO_LABELS = frozenset({"nan", "null"})
"""Labels, in lower case, with which programs write a missing value."""
_SPREADSHEET_ERROR = re.compile(
    r"#(NAME\?|REF!|VALUE!|N/A|DIV/0!|NUM!|NULL!|SPILL!|CALC!|FIELD!|BLOCKED!|CONNECT!|UNKNOWN!|BUSY!|ERROR!|"
    r"GETTING_DATA|BEZUG!|WERT!|NV|ZAHL!|NOM\?|VALEUR!|NOMBRE!|NUL!|NOME\?|VALORE!|VALOR!|RIF!|N/D|NÚM!|"
    r"¿NOMBRE\?|¡VALOR!|¡REF!|¡NUM!|¡DIV/0!|¡NULO!)|Err:\d{3}"
)
"""Errors of Excel, LibreOffice and Google Sheets in a cell, also in German, French, Italian, Spanish, Portuguese."""
_EMPTY = text_fault("")


class _Again(NamedTuple):
    """A row with a text that an earlier row has."""

    row: int
    line: int
    label: int


class FileRows:
    """The usable rows of one file, each text once. Rejected rows are counted by reason and go to the list."""

    def __init__(self, path: Path, labels: Labels, rejected: RejectedRows) -> None:
        """Number the labels with `labels`, and add rejected rows to `rejected`."""
        self.path = path
        self.texts: dict[str, int] = {}
        """Texts in the order of the file, each with its index in `labels`, `rows` and `lines`."""
        self.labels = array("I")
        self.rows = array("Q")
        self.lines = array("Q")
        self.encoding = ""
        self.delimiter = ""
        self.notes: list[str] = []
        """What was assumed about the file, in words."""
        self.problem = ""
        """Why the file cannot be read at all; empty if it can."""
        self.rejected: Counter[str] = Counter()
        """Number of rejected rows by reason."""
        self._read = 0
        self._repetitions = 0
        self._again: tuple[array[int], ...] = tuple(array("Q") for _ in range(4))
        """Rows with the text of an earlier row: its index, their row, line and label."""
        self._numbers = labels
        self._list = rejected

    def read(self, settings: Settings, fault: Callable[[LabelledRow], str] | None = None) -> None:
        """Read the whole file; `fault` returns an additional reason to reject a row, or an empty string."""
        self._list.begin(self.path)
        try:
            with open_labelled(self.path, ColumnChoice(settings.text_column, settings.label_column)) as file:
                self.encoding, self.delimiter = file.encoding, file.delimiter
                columns = file.text_column, file.label_column
                for self._read, row in enumerate(file.rows(), start=1):
                    if reason := row_fault(row) or (fault(row) if fault else ""):
                        self.reject(row.row, row.line, reason, row.text, row.label)
                    else:
                        self._add(row)
                self.notes += [f"{self.path}: {note}" for note in file.notes]
        except TableError as error:
            self.problem = str(error)
            return
        if not self._read:
            self.problem = f"{self.path} has a header but no rows. Add rows."
        labels = len({*self.labels, *self._again[-1]})
        if labels > _FEW_LABELS and len(self.texts) < labels:
            self.problem = (
                f"{self.path}: the column {shown(columns[1])} has {labels:,} different labels, and {shown(columns[0])} "
                f"only {counted(len(self.texts), 'text')}. If the columns are swapped, set "
                f"SENTIMENT_TEXT_COLUMN={columns[1]} and SENTIMENT_LABEL_COLUMN={columns[0]}"
            )
            return
        self._settle_contradictions()

    def _add(self, row: LabelledRow) -> None:
        place, line, text, spelling, _ = row
        label, new = self._numbers.number(spelling), len(self.labels)
        index = self.texts.setdefault(text, new)
        if index == new:
            self.labels.append(label)
            self.rows.append(place)
            self.lines.append(line)
        else:
            for column, value in zip(self._again, (index, place, line, label), strict=True):
                column.append(value)

    def reject(self, row: int, line: int, reason: str, text: str, label: str) -> None:
        """Count and list a rejected row; details may follow a colon in its reason."""
        self.rejected[sys.intern(reason.partition(":")[0])] += 1
        self._list.add(self.path, row, line, reason, text, label)

    def reject_text(self, text: str, reason: str) -> None:
        """Reject the row of a text that was usable by itself."""
        index = self.texts.pop(text)
        name = self._numbers.name(self.labels[index])
        self.reject(self.rows[index], self.lines[index], reason, text, name)

    def _settle_contradictions(self) -> None:
        """Keep the label on which two thirds of a text's rows agree, and reject the others; or else reject all."""
        indices, rows, lines, labels = self._again
        self._repetitions = len(indices)
        disputed = {index for index, label in zip(indices, labels, strict=True) if self.labels[index] != label}
        if not disputed:
            return
        told: defaultdict[int, list[_Again]] = defaultdict(list)
        for index, row, line, label in zip(indices, rows, lines, labels, strict=True):
            if index in disputed:
                told[index].append(_Again(row, line, label))
        for text in [text for text, index in self.texts.items() if index in disputed]:
            index = self.texts[text]
            self._settle(text, [_Again(self.rows[index], self.lines[index], self.labels[index]), *told[index]])

    def _settle(self, text: str, told: list[_Again]) -> None:
        votes = Counter(each.label for each in told)
        label, most = votes.most_common(1)[0]
        if 3 * most >= 2 * len(told):
            reason = f"{most} of the {len(told)} rows with this text have the label {shown(self._numbers.name(label))}"
            index = self.texts[text]
            first = next(each for each in told if each.label == label)
            self.labels[index], self.rows[index], self.lines[index] = label, first.row, first.line
            lost = [each for each in told if each.label != label]
        else:
            reason = f"the {len(told)} rows with this text have {len(votes)} labels, none of them in two thirds"
            del self.texts[text]
            lost = told
        # All rows with this text but the first were taken for repetitions.
        self._repetitions += max(len(told) - len(lost) - 1, 0) - (len(told) - 1)
        for each in lost:
            name = self._numbers.name(each.label)
            self.reject(each.row, each.line, f"{CONTRADICTION}: {reason}", text, name)

    def by_label(self) -> dict[int, int]:
        """Return the number of texts of each label."""
        return Counter(map(self.labels.__getitem__, self.texts.values()))

    def place(self, text: str) -> str:
        """Return where a text is, such as `row 5 (line 7)`."""
        row, line = self.rows[self.texts[text]], self.lines[self.texts[text]]
        return f"row {row}" if row == line else f"row {row} (line {line})"

    def counts(self) -> RowCounts:
        """Return how many rows were read, kept, repeated and rejected."""
        rejected = dict(sorted(self.rejected.items(), key=lambda item: (-item[1], item[0])))
        return RowCounts(
            self._read, self._read - self._repetitions - sum(rejected.values()), self._repetitions, rejected
        )


def row_fault(row: LabelledRow) -> str:
    """Return why a row cannot be used by itself; empty if it can."""
    _, _, text, label, fault = row
    if fault:
        return fault
    # Most texts are ASCII and begin with a letter: these three comparisons save two searches in each.
    if not (text.isascii() and "A" <= text[:1] <= "z" and len(text) <= MAX_CHARACTERS) or text.startswith("Err:"):
        if error := _SPREADSHEET_ERROR.fullmatch(text):
            return f"{SPREADSHEET_ERROR}: {error[0]}"
        wrong = text_fault(text)
        if wrong is not None:
            return EMPTY_TEXT if wrong == _EMPTY else f"{UNUSABLE_TEXT}: the text {wrong}"
    return label_fault(label)


@lru_cache(maxsize=1024)  # most files have few labels
def label_fault(label: str) -> str:
    """Return why a label cannot be used; empty if it can."""
    if label.casefold() in _NO_LABELS:
        return MISSING_LABEL
    if error := _SPREADSHEET_ERROR.fullmatch(label):
        return f"{SPREADSHEET_ERROR}: {error[0]}"
    fault = text_fault(label)
    if fault is not None:
        return MISSING_LABEL if fault == _EMPTY else f"{UNUSABLE_LABEL}: the label {fault}"
    return ""
