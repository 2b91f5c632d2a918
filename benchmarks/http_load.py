"""The load generator where wrk is not installed: `python -m benchmarks.http_load URL CONNECTIONS SECONDS [FILE]`.

POSTs the lines of the file, one a request, over connections that each send their next request when the last one
is answered; without a file it GETs the URL. Writes the same line of JSON as `wrk.lua`.
"""

import asyncio
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_OK = b"HTTP/1.1 200"
_BURST_S = 0.05


def is_complete(received: bytes) -> bool:
    """Whether an answer has been received to its end."""
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        return False
    length = _LENGTH.search(received, 0, head_end)
    return length is not None and len(received) >= head_end + 4 + int(length[1])


class Load:
    """What all connections have sent and received."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        """Send `requests`, in order, whichever connection is free."""
        self.requests = requests
        self.latencies: list[float] = []
        self.answered_at: list[float] = []
        self.refused = 0
        self.lost = 0
        self.ending = False


class Connection(asyncio.Protocol):
    """One connection, with one request under way."""

    def __init__(self, load: Load) -> None:
        """Count into `load`."""
        self._load = load
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._send()

    def data_received(self, data: bytes) -> None:
        """Send the next request when the answer is complete."""
        self._received += data
        if not is_complete(self._received):
            return
        if self._received.startswith(_OK):
            answered_at = time.perf_counter()
            self._load.latencies.append(answered_at - self._sent)
            self._load.answered_at.append(answered_at)
        else:
            self._load.refused += 1
        self._received = b""
        self._send()

    def connection_lost(self, _: Exception | None) -> None:
        """Count a request that the server left unanswered."""
        if not self._load.ending:
            self._load.lost += 1

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(next(self._load.requests))


def main(arguments: Sequence[str]) -> None:
    """Load the server for the time given and tell what came of it."""
    url, connections, seconds, *files = arguments
    parts = urlsplit(url)
    host, path = parts.netloc.encode(), parts.path.encode()
    if files:
        lines = Path(files[0]).read_bytes().splitlines()
        requests = [
            b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (path, host, len(line), line)
            for line in lines
        ]
    else:
        requests = [b"GET %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (path, host)]
    load = Load(itertools.cycle(requests))
    uvloop.run(_run(load, parts.hostname or "", parts.port or 80, int(connections), float(seconds)))


async def _run(load: Load, host: str, port: int, connections: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    opened = await asyncio.gather(
        *(loop.create_connection(lambda: Connection(load), host, port) for _ in range(connections))
    )
    await asyncio.sleep(seconds)
    elapsed = time.perf_counter() - started
    load.ending = True
    print(summary(load.latencies, load.answered_at, load.refused, load.lost, elapsed))
    for transport, _ in opened:
        transport.abort()


def steady(answered_at: Sequence[float]) -> tuple[int, float]:
    """Answers that came after the first ones, and the seconds from the first to the last.

    Their ratio is the rate of a server that is full. The whole run's would be too low: at its beginning nothing can be
    answered yet, and what is under way at its end was worked for and does not count. The first answers are those that
    come together with the very first, to requests that were taken into one batch.
    """
    if not answered_at:
        return 0, 0.0
    first, last = answered_at[0], answered_at[-1]
    return sum(moment > first + _BURST_S for moment in answered_at), last - first


def summary(latencies_s: Sequence[float], answered_at: Sequence[float], refused: int, lost: int, seconds: float) -> str:
    """The line of JSON that every load generator ends with."""
    ordered = sorted(latencies_s) or [0.0]
    steady_answers, steady_seconds = steady(answered_at)
    return json.dumps(
        {
            "answered": len(latencies_s),
            "refused": refused,
            "lost": lost,
            "seconds": seconds,
            "p50_ms": 1e3 * ordered[len(ordered) // 2],
            "p99_ms": 1e3 * ordered[len(ordered) * 99 // 100],
            "steady_answers": steady_answers,
            "steady_seconds": steady_seconds,
        }
    )


if __name__ == "__main__":
    main(sys.argv[1:])
