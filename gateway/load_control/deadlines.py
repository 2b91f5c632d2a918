"""Request timeouts, and detection of clients that disconnect before the response."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

from starlette.types import Receive

from gateway.http.problems import ClientLeftError, FieldError, InvalidFieldsError

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
_TIMEOUT_HEADER = TIMEOUT_HEADER.lower().encode()
_MOST_DIGITS = 9
LOOK_AFTER_S = 0.05
"""Seconds before a request is watched for a client disconnect. Most requests are done by then, and watching costs as
much as a twentieth of the handling."""

Answer = TypeVar("Answer")


def time_allowed_s(headers: Iterable[tuple[bytes, bytes]], longest_s: float) -> float:
    """Return the seconds that a request may take: the timeout in its headers, at most `longest_s`.

    Raises:
        InvalidFieldsError: the header is not a whole number of milliseconds.
    """
    for name, value in headers:
        if name == _TIMEOUT_HEADER:
            if not value.isdigit() or len(value) > _MOST_DIGITS:
                shown = value[:50].decode("latin-1")
                raise InvalidFieldsError(
                    [FieldError(TIMEOUT_HEADER, f"is {shown!r}; a whole number of milliseconds is needed")]
                )
            return min(int(value) / 1_000, longest_s)
    return longest_s


async def unless_client_leaves(receive: Receive, answer: Awaitable[Answer]) -> Answer:
    """Await `answer` for a request whose body has been read; cancel it when the client closes the connection.

    Raises:
        ClientLeftError: the client has disconnected.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    watch: asyncio.Task[None] | None = None
    has_left = False

    def leave(_: asyncio.Task[None]) -> None:
        nonlocal has_left
        if watch is not None and not watch.cancelled():
            has_left = True
            task.cancel()

    def look() -> None:
        nonlocal watch
        watch = loop.create_task(_until_left(receive))
        watch.add_done_callback(leave)

    timer = loop.call_later(LOOK_AFTER_S, look)
    try:
        return await answer
    except asyncio.CancelledError:
        if has_left:
            raise ClientLeftError("The connection was closed before the response.") from None
        raise
    finally:
        timer.cancel()
        if watch is not None:
            watch.remove_done_callback(leave)
            watch.cancel()
            watch = None  # for a callback that is already scheduled


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
