"""Reports the progress of a job: rows, speed and remaining time."""

import math
import operator
import time

from common.progress import StatusLine, duration
from scoring.job import Job
from scoring.parts import Parts


class Progress:
    """Measures progress in bytes, because the number of rows of a text file is unknown before its end."""

    def __init__(self, job: Job, parts: Parts) -> None:
        """Start from the finished parts."""
        self._sizes = [max(1, file.size) for file in job.inputs]
        done = [bool(parts.of(file)) and parts.of(file)[-1].last for file in range(len(job.inputs))]
        self._read = [1.0 if last else 0.0 for last in done]
        self._rows_before = parts.rows()
        self._share_before: float | None = None
        self._line = StatusLine()
        self._started = time.monotonic()
        self.rows = 0
        """Number of rows read by this process, including rejected ones."""

    def add(self, file: int, rows: int, fraction: float) -> None:
        """Add rows of an input, and set the share of it that is done."""
        self.rows += rows
        self._read[file] = fraction
        if self._share_before is None:
            # The share of a compressed file that was skipped is only known now.
            self._share_before = self._share()
        if self._line.is_due() and self._share() < 1:  # otherwise the final figures follow
            self._line.show(self._text())

    def end(self) -> None:
        """Print the final figures."""
        self._read = [1.0] * len(self._read)  # blank lines at the end belong to no row
        self._line.show(self._text(), stays=True)

    def summary(self) -> str:
        """Return the duration and speed of this process, and after how many rows it resumed, for the log."""
        seconds = time.monotonic() - self._started
        resumed = f", resumed after {self._rows_before:,} rows" if self._rows_before else ""
        return f"{duration(seconds)} ({self.rows / max(seconds, 1e-9):,.0f} rows/s{resumed})"

    def _share(self) -> float:
        """Return the share of all inputs' bytes that has been read."""
        return float(sum(map(operator.mul, self._sizes, self._read)) / sum(self._sizes))

    def _text(self) -> str:
        seconds = time.monotonic() - self._started
        share = self._share()
        here = share - (self._share_before or 0.0)
        left = f"{duration(seconds * (1 - share) / here)} left" if here > 0 else ""
        return (
            f"{self._rows_before + self.rows:,} rows  {math.floor(1000 * share) / 10:.1f} % of the input  "
            f"{self.rows / max(seconds, 1e-9):,.0f} rows/s  {left}"
        ).rstrip()
