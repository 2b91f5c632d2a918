"""Tells how far a job is, how fast it goes, and when it will be done."""

import operator
import time

from scoring.job import Job
from scoring.parts import Parts
from status_line import StatusLine, duration


class Progress:
    """Counts what is read of the inputs, by bytes, since nobody knows the rows of a text file before its end."""

    def __init__(self, job: Job, parts: Parts) -> None:
        """Begin after the parts that are done already."""
        self._sizes = [max(1, file.size) for file in job.inputs]
        done = [bool(parts.of(file)) and parts.of(file)[-1].last for file in range(len(job.inputs))]
        self._read = [1.0 if last else 0.0 for last in done]
        self._rows_before = parts.rows()
        self._share_before: float | None = None
        self._line = StatusLine()
        self._started = time.monotonic()
        self.rows = 0
        """Classified by this process."""

    def add(self, file: int, rows: int, fraction: float) -> None:
        """Count rows of an input, of which now so much is done."""
        self.rows += rows
        self._read[file] = fraction
        if self._share_before is None:
            # How much of a compressed file was passed over is known only now.
            self._share_before = self._share()
        if self._line.is_due():
            self._line.show(self._text())

    def end(self) -> None:
        """Tell the last figures on a line that stays."""
        self._line.show(self._text(), stays=True)

    def summary(self) -> str:
        """What was done, and how fast."""
        seconds = time.monotonic() - self._started
        return f"{self.rows:,} rows in {duration(seconds)} ({self.rows / max(seconds, 1e-9):,.0f} rows/s)"

    def _share(self) -> float:
        """Of all inputs' bytes that are read."""
        return float(sum(map(operator.mul, self._sizes, self._read)) / sum(self._sizes))

    def _text(self) -> str:
        seconds = time.monotonic() - self._started
        share = self._share()
        here = share - (self._share_before or 0.0)
        left = f"{duration(seconds * (1 - share) / here)} left" if here > 0 else ""
        return (
            f"{self._rows_before + self.rows:,} rows  {100 * share:.1f} %  "
            f"{self.rows / max(seconds, 1e-9):,.0f} rows/s  {left}"
        ).rstrip()
