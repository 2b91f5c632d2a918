"""The list of rejected rows: a CSV file in the state directory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.settings import Settings
from trainer.row_list import AddRow, row_list

COLUMNS = ("file", "row", "line", "reason", "text", "label")
DATA_LIST = "rejected_rows.csv"
FEEDBACK_LIST = "rejected_feedback.csv"


class RejectedRows:
    """Writes rejected rows one by one, so that any number of them needs little memory.

    They are listed file by file, and in the order of the file, in whatever order they are added.
    """

    def __init__(self, add_row: AddRow | None) -> None:
        """Write with `add_row`; None discards the rows."""
        self._add_row = add_row
        self._files: dict[Path, int] = {}

    def begin(self, file: Path) -> None:
        """List the rows of `file` after those of the files that began before."""
        self._files[file] = len(self._files)

    def add(self, file: Path, row: int, line: int, reason: str, text: str, label: str) -> None:
        """Write one row."""
        if self._add_row is not None:
            self._add_row((str(file), row, line, reason, text, label), place=self._files[file] << 48 | row)


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
    with row_list(path, "rejected rows", COLUMNS) as add_row:
        yield RejectedRows(add_row)
