"""Finds in Triton's log why it could not start."""

import re
from pathlib import Path

from serving.host.log_file import last_lines

_REASON = re.compile(r"(?:failed to load '[^']*' version \d+|Poll failed for model directory '[^']*'): (.+?)\"?$")
_LOG_LINE = re.compile(r"[IWE]\d{4} |[|+]")
"""Start of a line of Triton's own log, or of a table in it. Other lines come from processes that failed to start."""
_STACK = re.compile(r"(?:\\n|\s)*At:(?:\\n|\s|$).*")
_MOST_CHARACTERS = 500


def why_not_started(log_file: Path, start: int) -> str:
    """Return why Triton did not start, or an empty string if the log has no reason or cannot be read.

    Only the log after its first `start` bytes is read; those before belong to earlier starts.
    """
    lines = last_lines(log_file, start)
    reasons = [match[1] for line in lines if (match := _REASON.search(line))]
    if not reasons:
        reasons = [line.strip() for line in lines if line.strip() and not _LOG_LINE.match(line)]
    return _STACK.sub("", reasons[-1]).strip(" .;")[:_MOST_CHARACTERS] if reasons else ""
