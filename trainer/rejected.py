"""The list of rejected rows: a CSV file in the state directory."""

import csv
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.errors import PipelineError
from common.settings import Settings
from serving.model_repo.texts import FORMULA_STARTS

COLUMNS = ("file", "row", "line", "reason", "text", "label")
DATA_LIST = "rejected_rows.csv"
FEEDBACK_LIST = "rejected_feedback.csv"
_LONGEST_CELL = 32_000
"""Maximum characters of a cell; a spreadsheet cuts or refuses a cell with more than 32,767."""


class RejectedRows:
    """Writes rejected rows one by one, so that any number of them needs no memory."""

    def __init__(self, writer: Any) -> None:
        """Write with a writer of the `csv` module; None discards the rows."""
        self._writer = writer

    def add(self, file: Path, row: int, line: int, reason: str, text: str, label: str) -> None:
        """Write one row. A spreadsheet shows its cells as text and runs none as a formula."""
        if self._writer is not None:
            self._writer.writerow([_cell(str(file)), row, line, _cell(reason), _cell(text), _cell(label)])


def list_path(settings: Settings, name: str) -> Path:
    """Return the path of a list. Files within the state directory, those of a retraining, have theirs beside them."""
    beside = settings.train_data.absolute().parent
    inside = name == DATA_LIST and beside.is_relative_to(settings.state_dir.absolute())
    return (beside if inside else settings.state_dir) / name


@contextmanager
def rejected_rows(path: Path | None) -> Iterator[RejectedRows]:
    """Replace the list at `path` with the rows that are added in this context; None writes no list.

    Raises:
        PipelineError: the list cannot be written.
    """
    if path is None:
        yield RejectedRows(None)
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The texts are users' texts: only this account may read them, whatever the umask is.
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:  # noqa: PTH123
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerow(COLUMNS)
            yield RejectedRows(writer)
        part.replace(path)
    except OSError as error:
        raise PipelineError(
            f"The list of rejected rows {path} cannot be written: {error.strerror}. "
            "Free some space, or set SENTIMENT_STATE_DIR to another directory."
        ) from error
    finally:
        with suppress(OSError):  # it was renamed, or could not be created
            part.unlink()


def _cell(text: str) -> str:
    text = text if len(text) <= _LONGEST_CELL else f"{text[:_LONGEST_CELL]}…"
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
