"""Log lines that a process and those that it starts write once, whichever of them is first."""

import hashlib
import logging
import os

LOGGED = "PIPELINE_LINES_LOGGED"
"""Environment variable with the hashes of the lines, separated by blanks."""


def log_once(log: logging.Logger, level: int, line: str) -> None:
    """Log a line, unless this process or one that started it has done so with this function."""
    key = hashlib.sha256(line.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    logged = os.environ.get(LOGGED, "").split()
    if key not in logged:
        os.environ[LOGGED] = " ".join([*logged, key])
        log.log(level, "%s", line)
