"""HTTP/1.1 as uvicorn speaks it, within bounds that httptools does not have: of a request's head, and of time."""

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.problems import MalformedRequestError, ProblemError, RequestTimeoutError, TooLargeHeadError
from gateway.security_headers import security_headers

MAX_HEAD_BYTES = 64 * 1024
"""Of a request's first line and headers. Those that fit into one read are let through up to a read's size (256 KiB)."""

RECEIVE_S = 30.0
"""From a request's first byte to its last, or from a connection to its first byte. Less than that is 1.1 Mbit/s for
the longest body; without a bound, connections that send a byte now and then take all descriptors."""


_LINGER_S = 0.5


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """As uvicorn makes it."""
        super().__init__(*arguments, **named)
        self._head_bytes = 0
        self._in_head = True
        self._in_request = True
        self._began = self.loop.time()
        self._look: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, and look now and then whether a request is overdue: a timer a request would cost more."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._look = self.loop.call_later(RECEIVE_S, self._refuse_overdue)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came. What asks for another protocol (Upgrade) is taken as if it had not."""
        if self._refused:
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if not self._in_head:
                return
            self._refuse(MalformedRequestError("HTTP/2 is not spoken here; HTTP/1.1 is."))
        except httptools.HttpParserError:
            self._refuse(MalformedRequestError("What was sent is not HTTP/1.1."))
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(
                    TooLargeHeadError(f"The path and the headers are too long; at most {MAX_HEAD_BYTES:,} bytes fit.")
                )

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        self._head_bytes = 0
        self._in_head = self._in_request = True
        self._began = self.loop.time()

    def on_headers_complete(self) -> None:
        """End its head."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End its body."""
        self._in_request = False
        super().on_message_complete()

    def _refuse_overdue(self) -> None:
        left = self._began + RECEIVE_S - self.loop.time() if self._in_request else RECEIVE_S
        if left <= 0:
            self._refuse(RequestTimeoutError(f"The request did not come whole within {RECEIVE_S:.0f} s."))
        else:
            self._look = self.loop.call_later(left, self._refuse_overdue)

    def _refuse(self, problem: ProblemError) -> None:
        """Answer, unless an answer is on its way already, and close."""
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
        # Not at once: what is closed with something unread is reset, and the client may never read the answer.
        self.loop.call_later(_LINGER_S, self.transport.close)
