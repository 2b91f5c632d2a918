"""Limits repeated log lines, so that a failure at every request does not fill the log."""

import logging
import threading
import time

PERIOD_S = 10.0
MOST_LINES = 3
"""Maximum lines of one message in a period."""
_MOST_MESSAGES = 1_000
"""Maximum messages whose counts are kept."""


class FloodFilter(logging.Filter):
    """Logs each warning or error at most `MOST_LINES` times per period, whatever its arguments are.

    The record's attribute `most_lines` sets another maximum, also for information. The next line of the message after
    the period says how many were dropped.
    """

    def __init__(self) -> None:
        """Start without counts."""
        super().__init__()
        self._lock = threading.Lock()
        self._periods: dict[tuple[str, str], tuple[float, int]] = {}
        """Start of each message's period, and its count in that period."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log the record."""
        own: int | None = getattr(record, "most_lines", None)
        if record.levelno < logging.WARNING and own is None:
            return True
        most = MOST_LINES if own is None else own
        # The format string, so that different arguments count as the same message.
        key = (record.name, record.getMessage() if record.msg == "%s" else str(record.msg))
        now = time.monotonic()
        with self._lock:
            began, count = self._periods.get(key, (now, 0))
            if count and now - began < PERIOD_S:
                self._periods[key] = (began, count + 1)
                return count < most
            if len(self._periods) >= _MOST_MESSAGES:
                self._periods.clear()
            self._periods[key] = (now, 1)
        if count > most:
            record.msg = f"{record.msg} ({count - most} more like this were not logged)"
        return True
