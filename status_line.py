"""One line that says how far something is: rewritten on a terminal, printed now and then elsewhere."""

import sys
import time

_SECONDS_BETWEEN_LINES = 15.0
"""Pause between lines where they cannot be overwritten (a log file)."""


class StatusLine:
    """Reports to standard error."""

    def __init__(self) -> None:
        """Print nothing yet."""
        self._on_terminal = sys.stderr.isatty()
        self._last = float("-inf")

    def is_due(self) -> bool:
        """Whether the last line is so old that another may follow."""
        return time.monotonic() - self._last >= (0.2 if self._on_terminal else _SECONDS_BETWEEN_LINES)

    def show(self, line: str, stays: bool = False) -> None:
        """Write a line; on a terminal over the last one, unless that was to stay."""
        self._last = time.monotonic()
        if self._on_terminal:
            print(f"\r\x1b[K{line}", end="\n" if stays else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """So many seconds, in words."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
