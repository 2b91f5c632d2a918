"""Keeps a failure that comes with every request from filling the log with one and the same line."""

import logging
import threading
import time

PERIOD_S = 10.0
MOST_LINES = 3
"""Of one message in a period."""
_MOST_MESSAGES = 1_000
"""That are remembered."""


class FloodFilter(logging.Filter):
    """Lets warnings and errors pass until a message, whatever it is filled with, has come a few times in a period.

    The next one that passes, a period later or more, tells how many did not. Lines with figures are a request's own,
    of which each tells something else; `gateway.observing` bounds them.
    """

    def __init__(self) -> None:
        """Nothing has been logged yet."""
        super().__init__()
        self._lock = threading.Lock()
        self._periods: dict[tuple[str, str], tuple[float, int]] = {}
        """When the period of a message began, and how often it has come in it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged."""
        if record.levelno < logging.WARNING or hasattr(record, "figures"):
            return True
        # As it stands in the code, so that what it is filled with makes no other message of it.
        key = (record.name, record.getMessage() if record.msg == "%s" else str(record.msg))
        now = time.monotonic()
        with self._lock:
            began, count = self._periods.get(key, (now, 0))
            if count and now - began < PERIOD_S:
                self._periods[key] = (began, count + 1)
                return count < MOST_LINES
            if len(self._periods) >= _MOST_MESSAGES:
                self._periods.clear()
            self._periods[key] = (now, 1)
        if count > MOST_LINES:
            record.msg = f"{record.msg} ({count - MOST_LINES} more like this were not logged)"
        return True
