"""Offers requests at fixed rates, whatever becomes of them:
`python -m benchmarks.open_load URL TIMEOUT_MS FILE RATE:SECONDS …`.

POSTs the lines of the file, spaced evenly, at one rate after the other, and writes a line of JSON with what came of
each. Connections are opened as they are needed, so that no request waits for another's answer (open loop): a service
that is slow is not asked less. Latencies count from when a request should have been sent.
"""

import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.http_load import is_complete

_TICK_S = 0.002
"""Requests that are due within a tick are sent together; to wake for each would cost as much as to send it."""
ANSWERED = "200"
NORMAL_TIMES = 5.0
"""A service is normal again when no request is refused, and none takes over this times the median any more."""
_LAST_S = 15.0
"""For the answers of the last requests."""


class Outcome:
    """What came of a load's requests."""

    def __init__(self, offered: int) -> None:
        """Nothing yet."""
        self.started = time.perf_counter()
        self.offered = offered
        self.complete = asyncio.Event()
        self.answers: list[tuple[float, float, str]] = []
        """When a request was due and when it was answered, in seconds since the start, and the answer's status."""

    def add(self, status: str, due: float) -> None:
        """A request was answered, or its connection lost."""
        self.answers.append((due - self.started, time.perf_counter() - self.started, status))
        if len(self.answers) == self.offered:
            self.complete.set()

    def describe(self, rate: float, seconds: float) -> dict[str, object]:
        """What came of it, for a load of so many requests a second."""
        latencies: dict[str, list[float]] = {}
        for due, at, status in self.answers:
            latencies.setdefault(status, []).append(at - due)
        # The first second, in which queues fill, is left out.
        settled = min(1.0, seconds / 4)
        answered = sum(settled <= at < seconds for _, at, status in self.answers if status == ANSWERED)
        normal_s = NORMAL_TIMES * statistics.median(latencies.get(ANSWERED, [0.0]))
        return {
            "offered_per_s": rate,
            "answered_per_s": answered / (seconds - settled),
            "latencies_ms": {status: _percentiles(of_status) for status, of_status in latencies.items()},
            "normal_after_s": max(
                (due for due, at, status in self.answers if status != ANSWERED or at - due > normal_s), default=0.0
            ),
        }


class Connection(asyncio.Protocol):
    """One connection, with one request under way at most."""

    def __init__(self, free: "list[Connection]") -> None:
        """Go back to `free` when a request is answered."""
        self._free = free
        self._received = b""
        self._due = 0.0
        self._outcome: Outcome | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Be ready."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.is_open = True

    def send(self, request: bytes, due: float, outcome: Outcome) -> None:
        """Send a request that was due at a time."""
        self._due, self._outcome = due, outcome
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Count an answer that is complete."""
        self._received += data
        if not is_complete(self._received):
            return
        self._end(self._received[9:12].decode())
        self._free.append(self)

    def connection_lost(self, _: Exception | None) -> None:
        """Count a request that was left unanswered."""
        self.is_open = False
        self._end("lost")

    def _end(self, status: str) -> None:
        self._received = b""
        outcome, self._outcome = self._outcome, None
        if outcome is not None:
            outcome.add(status, self._due)


class Generator:
    """Keeps its connections from one load to the next."""

    def __init__(self, host: str, port: int) -> None:
        """Offer to this server."""
        self._host, self._port = host, port
        self._free: list[Connection] = []
        self._opening: set[asyncio.Task[None]] = set()

    async def offer(self, requests: Sequence[bytes], rate: float) -> Outcome:
        """Send the requests at `rate` a second; the last are not answered yet."""
        outcome = Outcome(len(requests))
        sent = 0
        while sent < len(requests):
            due_by_now = min(len(requests), int((time.perf_counter() - outcome.started) * rate) + 1)
            while sent < due_by_now:
                self._send(requests[sent], outcome.started + sent / rate, outcome)
                sent += 1
            await asyncio.sleep(_TICK_S)
        return outcome

    def _send(self, request: bytes, due: float, outcome: Outcome) -> None:
        while self._free:
            connection = self._free.pop()
            if connection.is_open:
                connection.send(request, due, outcome)
                return
        task = asyncio.get_running_loop().create_task(self._open(request, due, outcome))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, request: bytes, due: float, outcome: Outcome) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self._free), self._host, self._port
            )
        except OSError:
            outcome.add("lost", due)
            return
        connection.send(request, due, outcome)


def main(arguments: Sequence[str]) -> None:
    """Offer one load after the other and tell what came of them."""
    url, timeout_ms, file, *loads = arguments
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    head += f"X-Request-Timeout-Ms: {timeout_ms}\r\nContent-Length: "
    lines = iter(Path(file).read_bytes().splitlines())
    uvloop.run(_run(Generator(parts.hostname or "", parts.port or 80), head, lines, loads))


async def _run(generator: Generator, head: str, lines: Iterator[bytes], loads: Sequence[str]) -> None:
    done = []
    for load in loads:
        rate, seconds = map(float, load.split(":"))
        bodies = islice(lines, int(rate * seconds))
        requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
        used = time.process_time()
        outcome = await generator.offer(requests, rate)
        done.append((outcome, rate, seconds, (time.process_time() - used) / seconds))
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.gather(*(outcome.complete.wait() for outcome, *_ in done)), _LAST_S)
    for outcome, rate, seconds, cores in done:
        statuses = Counter(status for _, _, status in outcome.answers)
        statuses["none"] = outcome.offered - len(outcome.answers)
        print(json.dumps({**outcome.describe(rate, seconds), "statuses": statuses, "generator_cores": cores}))


def _percentiles(latencies_s: Sequence[float]) -> dict[str, float]:
    ordered = sorted(latencies_s)
    return {
        name: 1e3 * ordered[min(len(ordered) - 1, int(len(ordered) * share))]
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


if __name__ == "__main__":
    main(sys.argv[1:])
