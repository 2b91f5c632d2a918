"""uvicorn's HTTP/1.1 protocol with limits that httptools lacks: on the size of request heads, and on time."""

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.http.callers import address_group
from gateway.http.connections import StrangersConnections
from gateway.http.problems import (
    MalformedRequestError,
    OverloadedError,
    ProblemError,
    RequestTimeoutError,
    TooLargeHeadError,
)
from gateway.http.security_headers import security_headers

MAX_HEAD_BYTES = 64 * 1024
"""Maximum size of the request line and headers. A head within a single read may be as large as the read (256 KiB)."""

RECEIVE_S = 30.0
"""Maximum seconds from a request's first byte to its last, or from the connection to its first byte. The longest body
needs 1.1 Mbit/s. Without this limit, connections that send a byte now and then take all file descriptors."""

SEND_S = 60.0
"""Maximum seconds that a client may leave a response unread. Then the connection is closed and its memory freed."""
MAX_URL_BYTES = 16 * 1024
"""Maximum length of path and query. uvicorn decodes the path before any layer of the gateway can check it."""
MOST_HEADERS = 100
"""Maximum number of headers. Each costs a call into Python, and 64 KiB have room for 16,000."""
CONNECTION = "connection"
"""Key of the connection in a request's ASGI state, for the layer that identifies the caller."""

_LINGER_S = 0.5


class BoundedHttpProtocol(HttpToolsProtocol):
    """One HTTP/1.1 connection with limits."""

    group: str
    """The client's address group, from `gateway.http.callers`."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Create the connection with uvicorn's arguments."""
        super().__init__(*arguments, **named)
        self._head_bytes = 0
        self._in_head = True
        self._in_request = True
        self._began = self.loop.time()
        self._look: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._refused = False
        self._has_key = False
        self._strangers: StrangersConnections = self.config.app.state.strangers  # type: ignore[union-attr]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Open the connection and check it regularly for overdue requests: one timer per request would cost more."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self.group = address_group(self.client[0]) if self.client else ""
        if not self._strangers.open():
            self._refuse(OverloadedError(1.0))
            return
        self._look = self.loop.call_later(RECEIVE_S, self._refuse_overdue)
        self._note_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Clean up after the connection."""
        self._strangers.close(self)
        for timer in (self._look, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def recognize(self) -> None:
        """Mark the current request as having a key, so that its connection is not closed to make room."""
        self._has_key = True
        self._strangers.discard(self)

    def give_way(self) -> None:
        """Close the connection, because another one needs its place. If a request has begun, respond with an error."""
        if self.flow.write_paused:
            self.transport.abort()
            return
        if self._in_request and self.scope is not None:
            self._refuse(OverloadedError(1.0))
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Parse received data. A request to upgrade to another protocol is handled as plain HTTP/1.1."""
        if self._refused:
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if not self._in_head:
                return
            self._refuse(MalformedRequestError("HTTP/2 is not supported; use HTTP/1.1."))
        except httptools.HttpParserError:
            self._refuse(MalformedRequestError("The received data is not HTTP/1.1."))
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(
                    TooLargeHeadError(
                        f"The path and the headers are too long; at most {MAX_HEAD_BYTES:,} bytes are allowed."
                    )
                )

    def on_message_begin(self) -> None:
        """Start a request."""
        super().on_message_begin()
        self.scope["state"][CONNECTION] = self
        self._head_bytes = 0
        self._in_head = self._in_request = True
        self._began = self.loop.time()
        self._has_key = False
        self._strangers.discard(self)  # added again as the newest
        self._note_waiting()

    def on_url(self, url: bytes) -> None:
        """Add a part of the path and query, up to the limit."""
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            detail = f"The path and query are too long; at most {MAX_URL_BYTES:,} bytes are allowed."
            self._refuse_within_head(TooLargeHeadError(detail))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header, up to the limit."""
        super().on_header(name, value)
        if len(self.headers) > MOST_HEADERS:
            self._refuse_within_head(
                TooLargeHeadError(f"There are too many headers; at most {MOST_HEADERS} are allowed.")
            )

    def on_headers_complete(self) -> None:
        """Finish the head, and require exactly one Host header in HTTP/1.1 (RFC 9112, section 3.2)."""
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() != "1.0"):
            fault = "is missing" if not hosts else "is given more than once"
            self._refuse_within_head(MalformedRequestError(f"The header Host {fault}; HTTP/1.1 needs it once."))
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Finish a request's body."""
        self._in_request = False
        super().on_message_complete()
        self._note_waiting()

    def on_response_complete(self) -> None:
        """Finish a response."""
        super().on_response_complete()
        self._note_waiting()

    def pause_writing(self) -> None:
        """Start the time limit for a client that reads more slowly than the response is written."""
        super().pause_writing()
        self._unread = self.loop.call_later(SEND_S, self.transport.abort)
        self._note_waiting()

    def resume_writing(self) -> None:
        """Stop the time limit, because the client has read enough of the response."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
        self._note_waiting()

    def _note_waiting(self) -> None:
        """Register the connection as waiting if it waits for a client without a known key, or else unregister it."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if not self._has_key and (self._in_request or self.flow.write_paused or not is_answering):
            self._strangers.add(self)
        elif self._has_key and not self._in_request and not is_answering:
            self._strangers.add_idle(self)
        else:
            self._strangers.discard(self)

    def _refuse_within_head(self, problem: ProblemError) -> None:
        """Refuse the request and stop the parser, which would call back for each remaining header."""
        self._refuse(problem)
        raise ConnectionAbortedError(problem.detail)

    def _refuse_overdue(self) -> None:
        left = self._began + RECEIVE_S - self.loop.time() if self._in_request else RECEIVE_S
        if left <= 0:
            self._refuse(RequestTimeoutError(f"The request was not complete within {RECEIVE_S:.0f} s."))
        else:
            self._look = self.loop.call_later(left, self._refuse_overdue)

    def _refuse(self, problem: ProblemError) -> None:
        """Send the problem, unless a response has already begun, and close the connection."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            response = problem.response()
            added = security_headers(self.scheme == "https")
            headers = [*response.raw_headers, *added, (b"connection", b"close")]
            self.transport.write(
                b"HTTP/1.1 %d %s\r\n" % (problem.status, problem.title.encode())
                + b"".join(b"%s: %s\r\n" % header for header in headers)
                + b"\r\n"
                + bytes(response.body)
            )
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        # Not at once: closing with unread data resets the connection, and the client may never read the response.
        self.loop.call_later(_LINGER_S, self.transport.close)
