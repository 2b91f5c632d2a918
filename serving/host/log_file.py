"""Triton's log file: bounded in size, and read from its end."""

import errno
import shutil
from pathlib import Path

MOST_BYTES = 16 * 1024 * 1024
"""Size from which the log is rotated. One older log is kept, so both need about twice this size."""
_READ_BYTES = 256 * 1024


def rotate(log_file: Path) -> bool:
    """If the log is too large, move its content to a file with the ending `.1`; return whether this was done.

    Triton keeps the file open, so the content is copied and the file is emptied. Triton appends, and goes on at the
    new end. Lines that it writes between the two steps are lost. On a full disk the content is lost, to free its space.

    Raises:
        OSError: the file cannot be copied or emptied.
    """
    if not log_file.exists() or log_file.stat().st_size < MOST_BYTES:
        return False
    older = log_file.with_name(f"{log_file.name}.1")
    try:
        shutil.copyfile(log_file, older)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        older.unlink(missing_ok=True)  # only a part
    with log_file.open("r+b") as file:
        file.truncate()
    return True


def last_lines(log_file: Path, start: int = 0) -> list[str]:
    """Return the lines after the first `start` bytes, at most the last 256 KiB; none if the log cannot be read."""
    try:
        with log_file.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(min(start, size), size - _READ_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
