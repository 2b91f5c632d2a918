"""The columns that a job reads and adds."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Columns:
    """The columns that a job reads and adds."""

    text: str | None
    """The column with the texts: a name, a position, or None for the usual names."""
    added: tuple[str, str, str]
    """Names of the added columns for label, score and version."""

    def problem(self, names: Sequence[str]) -> str | None:
        """Return the problem with the columns of a file or a row; None if there is none."""
        clashes = [name for name in self.added if name in names]
        if clashes:
            return (
                f"already has a column {clashes[0]!r}. Choose other names for the added columns (--prefix predicted_)."
            )
        return None
