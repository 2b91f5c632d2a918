"""Notices that a file was replaced or written while it was read, and reads it again."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

FileState = tuple[int, int, int, int]
"""Device, inode, size in bytes, and time of the last change in nanoseconds."""

PAUSES_S = (1.0, 5.0)
"""Seconds before each further reading."""

log = logging.getLogger(__name__)


def read_unchanged(paths: Sequence[Path], read: Callable[[], T]) -> tuple[T, list[Path]]:
    """Call `read`, and again while one of the files that it reads changes meanwhile, at most three times in all.

    Returns the last result, and the files that changed during the last reading.
    """
    pauses = iter(PAUSES_S)
    while True:
        before = [file_state(path) for path in paths]
        result = read()
        changed = [path for path, state in zip(paths, before, strict=True) if file_state(path) != state]
        pause_s = next(pauses, None)
        if not changed or pause_s is None:
            return result, changed
        names = " and ".join(map(str, changed))
        log.warning("%s changed during the reading, which begins again in %g s.", names, pause_s)
        time.sleep(pause_s)


def file_state(path: Path) -> FileState | None:
    """Return values of which one differs after a file was written or replaced; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
