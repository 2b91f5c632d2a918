"""Which request or job the code that runs now belongs to: for logs, and for those who are asked on its behalf."""

import itertools
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

current_request: ContextVar[str] = ContextVar("current_request", default="")
"""Id of the request that is being answered, or of several that share a call, separated by commas."""

current_job: ContextVar[int | None] = ContextVar("current_job", default=None)
"""Number of the job that is being done."""

MOST_CHARACTERS = 64
_WELL_FORMED = re.compile(rb"[A-Za-z0-9._\-]{1,%d}" % MOST_CHARACTERS)
"""UUIDs, ULIDs, trace ids; nothing that could end a line of a log, or a header."""

_process = secrets.token_hex(6)
_numbers = itertools.count(1)


def request_id(given: bytes) -> str:
    """The id that a client gave, if it is well formed, or a new one."""
    if given and _WELL_FORMED.fullmatch(given):
        return given.decode("ascii")
    # Random once and then counted: 128 random bits for each took 0.3 µs longer.
    return f"{_process}{next(_numbers):08x}"


@contextmanager
def doing_job(number: int) -> Iterator[None]:
    """What is done in the block belongs to the job."""
    token = current_job.set(number)
    try:
        yield
    finally:
        current_job.reset(token)
