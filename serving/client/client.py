"""A high-throughput client: classifies any number of texts over Triton's gRPC, at one or several endpoints.

`client/setup.py` makes it a package of its own, with the modules that it imports. `docs/client-and-scoring.md` has
examples.
"""

import asyncio
import itertools
import re
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from serving.client.errors import KeyRefusedError, TextRefusedError, TritonTimeoutError, TritonUnavailableError
from serving.client.failover import Endpoint, Failover, pauses
from serving.client.one_version import by_one_version
from serving.client.triton_client import Classification, TritonClient
from serving.model_repo.protocol import MAX_BATCH_SIZE
from serving.model_repo.texts import text_fault

__all__ = [
    "AsyncClient",
    "Client",
    "InvalidTextError",
    "KeyRefusedError",
    "Predictions",
    "TritonTimeoutError",
    "TritonUnavailableError",
]

DEFAULT_CONCURRENCY = 8
"""Concurrent requests for each endpoint: a few more than its cores, so that its queue is never empty."""
DEFAULT_TIMEOUT_S = 60.0

_GRACE_S = 0.2
"""Seconds to wait after the deadline, so that the request's own, more specific error arrives first."""

T = TypeVar("T")


class InvalidTextError(ValueError):
    """A text cannot be classified at any endpoint; its call returns no predictions."""

    def __init__(self, position: int, fault: str) -> None:
        """Build the message from the text's position and the fault."""
        super().__init__(f"texts[{position}] {fault}")
        self.position = position
        """Position of the text in the caller's list."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """The predictions for a list of texts, in the same order."""

    labels: list[str]
    scores: list[float]
    """Calibrated probability of each label, 0 to 1."""
    version: int | None
    """The model version of all predictions; None if there are no texts."""
    truncated: list[int]
    """Positions of the texts that were longer than the model reads, and were truncated."""


class AsyncClient:
    """The asyncio client; create and use it within one running event loop.

    It sends several requests at a time, each with as many texts as Triton accepts. Retryable errors are retried until
    the call's deadline: at once at another endpoint; if all endpoints rest, after exponential backoff with jitter. An
    endpoint that fails rests for a time that doubles with each failure, and is then tried with one request.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        api_key: str = "",
    ) -> None:
        """Prepare to call the Tritons at `endpoints`, each the `host:port` of a gRPC port; connect on the first call.

        All calls together have at most `concurrency` requests per endpoint in progress. `timeout_s` is the default
        time limit of a call. Requests carry `api_key`, if there is one.

        Raises:
            ValueError: there is no endpoint, or one is not `host:port`, or `concurrency` is below 1.
        """
        addresses = [endpoints] if isinstance(endpoints, str) else list(endpoints)
        if not addresses:
            raise ValueError("no endpoint was given; at least one `host:port` is needed")
        for address in addresses:
            if ":" not in address or address.startswith(("http://", "https://")):
                raise ValueError(f"{address!r} is no endpoint; the `host:port` of Triton's gRPC is needed")
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; at least 1 is needed")
        self._tritons = Failover(
            [Endpoint(TritonClient(address, api_key=api_key, cancels=True)) for address in addresses]
        )
        self._most_requests = concurrency * len(addresses)
        self._free_requests = asyncio.Semaphore(self._most_requests)
        self._timeout_s = timeout_s

    async def predict(self, texts: Sequence[str], timeout_s: float | None = None) -> Predictions:
        """Classify any number of texts, all with the same model version.

        If the version changes meanwhile, texts with predictions by the older version are sent again.

        Raises:
            InvalidTextError: a text is empty, too long or not valid Unicode; names the first such text.
            TritonUnavailableError: no endpoint could respond in time; the message has the last reason.
            TritonTimeoutError: no response arrived in time.
            KeyRefusedError: the API key is missing or refused.
        """
        _check(texts)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._timeout_s if timeout_s is None else timeout_s)
        starts = range(0, len(texts), MAX_BATCH_SIZE)
        answers = await by_one_version(
            starts,
            lambda stale: self._ask_all(texts, stale, deadline),
            itertools.takewhile(lambda pause: loop.time() + pause <= deadline, pauses()),
        )
        return _joined([answers[start] for start in starts])

    async def close(self) -> None:
        """Close the connections and cancel the calls in progress."""
        await self._tritons.close()

    async def __aenter__(self) -> "AsyncClient":
        """Return the client; the `async with` statement closes it."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the client."""
        await self.close()

    async def _ask_all(self, texts: Sequence[str], starts: Sequence[int], deadline: float) -> dict[int, Classification]:
        """Send the requests whose texts begin at `starts`; return their results by start position."""
        answers: dict[int, Classification] = {}
        waiting = iter(starts)

        async def ask() -> None:
            for start in waiting:
                async with self._free_requests:
                    answers[start] = await self._ask(texts[start : start + MAX_BATCH_SIZE], start, deadline)

        asking = [asyncio.ensure_future(ask()) for _ in range(min(self._most_requests, len(starts)))]
        if not asking:
            return answers
        time_left = deadline - asyncio.get_running_loop().time() + _GRACE_S
        try:
            done, late = await asyncio.wait(asking, timeout=time_left, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            # If one request failed or the caller was cancelled, the other results are useless.
            for task in asking:
                task.cancel()
        for error in [task.exception() for task in done]:
            if error is not None:
                raise error
        if late:  # they waited for requests of other calls
            raise TritonTimeoutError("no answer in time; other calls of this client have all its requests under way")
        return answers

    async def _ask(self, texts: Sequence[str], start: int, deadline: float) -> Classification:
        """Send one request to any endpoint and return its result; `start` is its first text's position in the call."""
        try:
            return await self._tritons.call_any(texts, deadline)
        except TextRefusedError as error:
            named = re.search(r"TEXT\[(\d+)\] (.*)", str(error), flags=re.DOTALL)
            position, fault = (int(named[1]), named[2]) if named else (0, f"or one after it: {error}")
            raise InvalidTextError(start + position, fault) from error


class Client:
    """The synchronous client; several threads may share one.

    It runs an `AsyncClient` in its own thread, so it does not survive a fork: create it in the process that uses it.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        api_key: str = "",
    ) -> None:
        """Start a thread that runs an `AsyncClient` with these arguments.

        Raises:
            ValueError: there is no endpoint, or one is not `host:port`, or `concurrency` is below 1.
        """

        async def make() -> AsyncClient:
            return AsyncClient(endpoints, concurrency=concurrency, timeout_s=timeout_s, api_key=api_key)

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sentiment-client", daemon=True)
        self._thread.start()
        try:
            self._client = self._run(make())
        except ValueError:
            self._end()
            raise

    def predict(self, texts: Sequence[str], timeout_s: float | None = None) -> Predictions:
        """Classify any number of texts with the same model version; see `AsyncClient.predict`."""
        if self._loop.is_closed():
            raise RuntimeError("the client is closed")
        return self._run(self._client.predict(texts, timeout_s))

    def close(self) -> None:
        """Close the connections and cancel the calls in progress in other threads."""
        if not self._loop.is_closed():
            self._run(self._client.close())
            self._end()

    def __enter__(self) -> "Client":
        """Return the client; the `with` statement closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # after Ctrl-C, nobody needs the result
            raise

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _check(texts: Sequence[str]) -> None:
    if isinstance(texts, str | bytes):
        raise TypeError("a list of texts is needed; this is one text")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{position}] is {type(text).__name__}; a string is needed")
        fault = text_fault(text)
        if fault is not None:
            raise InvalidTextError(position, fault)


def _joined(answers: Sequence[Classification]) -> Predictions:
    return Predictions(
        labels=[label for answer in answers for label in answer.labels],
        scores=[score for answer in answers for score in answer.scores],
        version=answers[0].version if answers else None,
        truncated=[
            number * MAX_BATCH_SIZE + position for number, answer in enumerate(answers) for position in answer.truncated
        ],
    )
