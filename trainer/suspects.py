"""The list of labels that are probably wrong: a CSV file in the state directory. People decide what follows from it."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common.settings import Settings
from trainer.row_list import row_list

FILE = "suspicious_labels.csv"
MOST_ROWS = 50


class Suspect(NamedTuple):
    """A text with a label that is probably wrong, and a row of the list."""

    data: str
    """`training` or `validation`."""
    text: str
    label: str
    suggested_label: str
    """The label that is probably right."""
    label_score: float
    """Probability of the label that the text has."""
    suggested_score: float


@dataclass(frozen=True)
class SuspectList:
    """The list that the last training has written."""

    path: Path
    rows: int

    @property
    def is_full(self) -> bool:
        """True if there may be more suspects than the list has room for."""
        return self.rows >= MOST_ROWS


def write_suspects(settings: Settings, suspects: Sequence[Suspect]) -> SuspectList:
    """Replace the list with the first `MOST_ROWS` suspects; without any, only the header is written.

    Raises:
        PipelineError: the list cannot be written.
    """
    path = settings.state_dir / FILE
    listed = suspects[:MOST_ROWS]
    with row_list(path, "suspicious labels", Suspect._fields) as add_row:
        for suspect in listed:
            add_row([round(cell, 4) if isinstance(cell, float) else cell for cell in suspect])
    return SuspectList(path, len(listed))


def last_suspects(settings: Settings) -> SuspectList | None:
    """Return the list that the last training has written; None if there is no readable one."""
    path = settings.state_dir / FILE
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return SuspectList(path, sum(1 for _ in csv.DictReader(file)))
    except (OSError, ValueError, csv.Error):
        return None
