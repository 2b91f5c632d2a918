"""Lightweight HTTP connections for the load generator, which leave most CPU time to the server."""

import asyncio
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

import orjson

LOST = "lost"
"""Used as the status if the connection was lost before the response."""
_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"

Ended = Callable[["Connection", str, float], None]
"""Callback with the connection, the response's status, and the time at which the request was due."""


def is_complete(received: bytes) -> bool:
    """Return whether a response has been received completely."""
    head, end, body = received.partition(_END_OF_HEAD)
    length = (head.lower() + b"\r\n").partition(_LENGTH)[2].partition(b"\r\n")[0]
    return bool(end and length) and len(body) >= int(length)


class Connection(asyncio.Protocol):
    """One connection, with at most one request in progress."""

    def __init__(self) -> None:
        """Start without a request."""
        self._received = b""
        self._ended: Ended | None = None
        self._due = 0.0
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the transport and mark the connection as open."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's class does not inherit from it
        self.is_open = True

    def send(self, request: bytes, due: float, ended: Ended) -> None:
        """Send a request that was due at the time `due`; `ended` is called with the response's status."""
        self._due, self._ended = due, ended
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Report the response's status when it is complete."""
        self._received += data
        if is_complete(self._received):
            self._end(self._received[9:12].decode())

    def connection_lost(self, _: Exception | None) -> None:
        """Report a request without a response as lost."""
        self.is_open = False
        self._end(LOST)

    def _end(self, status: str) -> None:
        self._received = b""
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self, status, self._due)


class Target:
    """The server and path to which HTTP requests are sent."""

    def __init__(self, url: str, headers: str = "") -> None:
        """Send requests to `url` with `headers`, each of which ends with CRLF."""
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._line = f"{parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n{headers}"

    def get(self) -> bytes:
        """Return a serialized GET request."""
        return f"GET {self._line}\r\n".encode()

    def post(self, body: object) -> bytes:
        """Return a serialized POST request with a JSON body."""
        content = orjson.dumps(body)
        head = f"POST {self._line}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        return head.encode() + content

    async def connect(self) -> Connection:
        """Open a connection."""
        return (await asyncio.get_running_loop().create_connection(Connection, self._host, self._port))[1]
