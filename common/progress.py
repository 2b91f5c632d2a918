"""A progress line: overwritten on a terminal, printed every 15 seconds elsewhere."""

import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS_BETWEEN_LINES = 15.0
"""Seconds between lines if they cannot be overwritten, as in a log file."""
_SECONDS_BETWEEN_TICKS = 1.0


_listeners: list[Callable[[str], None]] = []


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Call `listener` with each progress line of this process during the block, in the thread that shows the line.

    The parts of a line, which are in columns on a terminal, are separated by commas.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def report(line: str) -> None:
    """Give a progress line to the listeners only, because a log line says the same to the user."""
    for listener in _listeners:
        listener(re.sub(r"\s{2,}", ", ", line.strip()))


@contextmanager
def under_way(what: str) -> Iterator[None]:
    """Show on a progress line what the block does, and for how long, and remove the line at its end.

    Use it for a block that takes many seconds, logs nothing and shows no progress of its own. `what` begins the line.
    """
    line, began, ended = StatusLine(), time.monotonic(), threading.Event()

    def show_repeatedly() -> None:
        while not ended.wait(_SECONDS_BETWEEN_TICKS):
            now = f"{what}  {duration(time.monotonic() - began)}"
            if line.is_due():
                line.show(now)
            else:
                report(now)

    line.wait()
    report(what)
    thread = threading.Thread(target=show_repeatedly, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        line.remove()


class StatusLine:
    """A progress line on standard error."""

    def __init__(self) -> None:
        """Start without a line."""
        self._on_terminal = sys.stderr.isatty()
        self._last = float("-inf")

    def wait(self) -> None:
        """Count the time until the next line from now on, as if a line had just been shown."""
        self._last = time.monotonic()

    def remove(self) -> None:
        """Remove the line from the terminal."""
        if self._on_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def is_due(self) -> bool:
        """Return whether enough time has passed since the last line."""
        return time.monotonic() - self._last >= (0.2 if self._on_terminal else _SECONDS_BETWEEN_LINES)

    def show(self, line: str, stays: bool = False) -> None:
        """Write a line. On a terminal it overwrites the last one, unless that was written with `stays`."""
        self.wait()
        report(line)
        if self._on_terminal:
            # A line that wraps cannot be overwritten.
            line = line if stays else line[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[K{line}", end="\n" if stays else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Format a duration in hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
