"""Generates load in a separate process and measures the responses: `python -m benchmarks.load_worker`.

`http` and `grpc` keep a fixed number of requests in progress: each response triggers the next request (closed loop).
`offer` sends at a fixed rate (open loop), so a slow service does not get fewer requests.
"""

import asyncio
import contextlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.http_connection import LOST, Connection, Ended, Target
from benchmarks.results import Figures
from benchmarks.texts import distinct_texts
from benchmarks.worker import do_tasks
from common.errors import PipelineError
from serving.client.errors import TritonTimeoutError, TritonUnavailableError
from serving.client.triton_client import TritonClient

ANSWERED = "200"
NORMAL_TIMES = 5.0
"""A service is normal again when it refuses no request, and none takes longer than this multiple of the median."""
_TURNOVERS = 6
"""A closed loop lasts until each connection has had about this many responses, even from a slow server."""
LONGEST_RUN_S = 20.0
"""Maximum seconds of a closed loop."""
_BURST_S = 0.05
_TICK_S = 0.002
"""Requests due within a tick are sent together; waking up for each would cost as much as sending it."""
_LAST_S = 15.0
"""Seconds to wait for the last responses of an open loop."""
_GRPC_TIMEOUT_S = 30.0

_streams: dict[str, Iterator[str]] = {}


def read_texts(file: str) -> list[str]:
    """Read a JSON list of texts from a file."""
    texts: list[str] = json.loads(Path(file).read_text(encoding="utf-8"))
    return texts


def never_sent(file: str) -> Iterator[str]:
    """Return an endless iterator over distinct texts of a file; no text is used twice in this process."""
    if file not in _streams:
        _streams[file] = distinct_texts(read_texts(file))
    return _streams[file]


class Outcome:
    """The results of one load's requests."""

    def __init__(self) -> None:
        """Start the clock, without results."""
        self.started = time.perf_counter()
        self.started_cpu = time.process_time()
        self.cpu_s = 0.0
        self.is_over = False
        self._missing = 0
        self._status = ""
        self._enough = asyncio.Event()
        self.answers: list[tuple[float, float, str]] = []
        """(Due time, response time, status) of each request; times in seconds since the start."""

    def add(self, status: str, due: float) -> None:
        """Record a response or a lost connection."""
        if not self.is_over:
            self.answers.append((due - self.started, time.perf_counter() - self.started, status))
            self._missing -= self._status in ("", status)
            if self._missing == 0:
                self._enough.set()

    async def wait_for(self, answers: int, longest_s: float, status: str = "") -> None:
        """Wait for a number of responses, of the given status if any, but at most `longest_s` seconds."""
        self._status = status
        self._missing = answers - sum(status in ("", found) for _, _, found in self.answers)
        if self._missing > 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._enough.wait(), longest_s)

    async def last(self, seconds: float, connections: int, longest_s: float) -> None:
        """Wait until the load has lasted for `seconds`, and each connection has had a few responses."""
        await asyncio.sleep(seconds)
        # Refusals do not count: they arrive at once, while accepted requests are still being processed.
        await self.wait_for(_TURNOVERS * connections, longest_s - seconds, ANSWERED)

    def latencies_s(self, status: str) -> list[float]:
        """Return the sorted latencies of the responses with the given status."""
        return sorted(at - due for due, at, found in self.answers if found == status)

    def figures(self, connections: int, texts_each: int = 1) -> Figures:
        """Return texts per second, latencies, failed requests, and the cores used to generate the load.

        Raises:
            PipelineError: no response has the status 200.
        """
        elapsed = time.perf_counter() - self.started
        self.is_over = True
        latencies = self.latencies_s(ANSWERED)
        if not latencies:
            raise PipelineError(f"None of {len(self.answers):,} requests was answered with 200 within {elapsed:.0f} s.")
        answers, seconds = steady([at for _, at, status in self.answers if status == ANSWERED])
        if answers < connections:  # too few: the first responses of two streams may be far apart
            answers, seconds = len(latencies), elapsed
        return {
            "texts_per_s": texts_each * answers / seconds,
            "p50_ms": 1e3 * percentile(latencies, 0.5),
            "p99_ms": 1e3 * percentile(latencies, 0.99),
            "failed": len(self.answers) - len(latencies),
            "generator_cores": (time.process_time() - self.started_cpu) / elapsed,
        }


def steady(answered_at: Sequence[float]) -> tuple[int, float]:
    """Return the number of responses after the first batch, and the seconds from the first response to the last.

    Their ratio is the throughput of a fully loaded server. The rate over the whole run would be too low: there are no
    responses at its start, and requests still in progress at its end do not count. The first batch are all responses
    that arrive together with the first one.
    """
    if not answered_at:
        return 0, 0.0
    first, last = answered_at[0], answered_at[-1]
    return sum(moment > first + _BURST_S for moment in answered_at), last - first


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which the given share of the sorted values lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def http(
    url: str,
    seconds: float,
    connections: int,
    texts: str = "",
    texts_each: int = 0,
    repeated: int = 0,
    longest_s: float = LONGEST_RUN_S,
) -> Figures:
    """Put an HTTP server under a closed-loop load.

    By default, each request POSTs a new text of the file `texts`. With `texts_each`, it POSTs a list of that many new
    texts; with `repeated`, one of the first `repeated` texts. Without `texts`, it is a GET.
    """
    target = Target(url)
    requests: Iterator[bytes]
    if not texts:
        requests = cycle([target.get()])
    elif repeated:
        requests = cycle([target.post({"text": text}) for text in read_texts(texts)[:repeated]])
    elif texts_each:
        requests = (target.post({"texts": some}) for some in _lists(texts, texts_each))
    else:
        requests = (target.post({"text": text}) for text in never_sent(texts))
    outcome = Outcome()

    def ended(connection: Connection, status: str, due: float) -> None:
        outcome.add(status, due)
        if connection.is_open and not outcome.is_over:
            connection.send(next(requests), time.perf_counter(), ended)

    opened = await asyncio.gather(*(target.connect() for _ in range(connections)))
    for connection in opened:
        connection.send(next(requests), time.perf_counter(), ended)
    await outcome.last(seconds, connections, longest_s)
    figures = outcome.figures(connections, texts_each or 1)
    for connection in opened:
        connection.transport.abort()
    return figures


async def grpc(address: str, seconds: float, streams: int, texts: str, texts_each: int) -> Figures:
    """Put Triton under a closed-loop gRPC load, with lists of `texts_each` new texts."""
    client = TritonClient(address)
    requests = _lists(texts, texts_each)
    outcome = Outcome()

    async def stream() -> None:
        while True:
            sent = time.perf_counter()
            try:
                await client.classify(next(requests), _GRPC_TIMEOUT_S)
            except (TritonUnavailableError, TritonTimeoutError):
                outcome.add(LOST, sent)
            else:
                outcome.add(ANSWERED, sent)

    tasks = [asyncio.create_task(stream()) for _ in range(streams)]
    ending = asyncio.create_task(outcome.last(seconds, streams, LONGEST_RUN_S))
    await asyncio.wait([*tasks, ending], return_when=asyncio.FIRST_COMPLETED)
    ended = [task for task in tasks if task.done()]
    try:
        for task in ended:
            task.result()  # a stream only ends by itself on an unexpected error
        return outcome.figures(streams, texts_each)
    finally:
        for task in (*tasks, ending):
            task.cancel()
        await asyncio.gather(*tasks, ending, return_exceptions=True)
        await client.close()


async def offer(url: str, texts: str, deadline_s: float, loads: list[tuple[float, float]]) -> list[dict[str, object]]:
    """Run open-loop loads in sequence, each a (requests per second, seconds) pair; return the results of each.

    Connections are opened on demand, so that no request waits for another's response. Latencies are measured from the
    time at which a request was due. Each request has a deadline of `deadline_s` seconds.
    """
    target = Target(url, f"X-Request-Timeout-Ms: {1e3 * deadline_s:.0f}\r\n")
    free: list[Connection] = []
    under_way: set[asyncio.Task[None]] = set()

    async def open_and_send(request: bytes, due: float, outcome: Outcome, ended: Ended) -> None:
        try:
            connection = await target.connect()
        except OSError:
            outcome.add(LOST, due)
        else:
            connection.send(request, due, ended)

    async def send_all(rate: float, seconds: float) -> Outcome:
        requests = [target.post({"text": text}) for text in islice(never_sent(texts), int(rate * seconds))]
        outcome = Outcome()

        def ended(connection: Connection, status: str, due: float) -> None:
            outcome.add(status, due)
            free.append(connection)

        sent = 0
        while sent < len(requests):
            due_by_now = min(len(requests), int((time.perf_counter() - outcome.started) * rate) + 1)
            for number in range(sent, due_by_now):
                due = outcome.started + number / rate
                while free and not free[-1].is_open:
                    free.pop()
                if free:
                    free.pop().send(requests[number], due, ended)
                else:
                    task = asyncio.create_task(open_and_send(requests[number], due, outcome, ended))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
            sent = due_by_now
            await asyncio.sleep(_TICK_S)
        outcome.cpu_s = time.process_time() - outcome.started_cpu
        return outcome

    outcomes = [await send_all(rate, seconds) for rate, seconds in loads]
    until = time.perf_counter() + _LAST_S
    for outcome, (rate, seconds) in zip(outcomes, loads, strict=True):
        await outcome.wait_for(int(rate * seconds), until - time.perf_counter())
    return [_describe(outcome, *load) for outcome, load in zip(outcomes, loads, strict=True)]


def _describe(outcome: Outcome, rate: float, seconds: float) -> dict[str, object]:
    statuses = Counter(status for _, _, status in outcome.answers)
    statuses["none"] = int(rate * seconds) - len(outcome.answers)
    latencies = {status: outcome.latencies_s(status) for status in statuses}
    # Leave out the first second, in which queues fill.
    settled = min(1.0, seconds / 4)
    answered = sum(settled <= at < seconds for _, at, status in outcome.answers if status == ANSWERED)
    normal_s = NORMAL_TIMES * statistics.median(latencies.get(ANSWERED, [0.0]))
    return {
        "answered_per_s": answered / (seconds - settled),
        "statuses": statuses,
        "p50_ms": {status: 1e3 * percentile(found, 0.5) for status, found in latencies.items() if found},
        "p99_ms": {status: 1e3 * percentile(found, 0.99) for status, found in latencies.items() if found},
        "normal_after_s": max(
            (due for due, at, status in outcome.answers if status != ANSWERED or at - due > normal_s), default=0.0
        ),
        "generator_cores": outcome.cpu_s / seconds,
    }


def _lists(texts: str, texts_each: int) -> Iterator[list[str]]:
    while True:
        yield list(islice(never_sent(texts), texts_each))


_KINDS: dict[str, Callable[..., Coroutine[Any, Any, object]]] = {"http": http, "grpc": grpc, "offer": offer}


def _do(kind: str, **task: Any) -> object:
    return uvloop.run(_KINDS[kind](**task))


if __name__ == "__main__":
    do_tasks(_do)
