"""A client for programs that want throughput: any number of texts, over Triton's gRPC, from one endpoint or several.

It needs `grpcio`, `tritonclient` and `numpy`, and nothing else of this project than the modules beside it.
`docs/client-and-scoring.md` shows it at work.
"""

import asyncio
import re
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from serving.endpoints import Endpoint, Endpoints, pauses
from serving.protocol import MAX_BATCH_SIZE
from serving.texts import text_fault
from serving.triton_client import (
    Classification,
    TextRefusedError,
    TritonTimeoutError,
    TritonUnavailableError,
)

__all__ = ["AsyncClient", "Client", "InvalidTextError", "Predictions", "TritonTimeoutError", "TritonUnavailableError"]

DEFAULT_CONCURRENCY = 8
"""Requests under way at each endpoint: a few more than cores, so that texts always wait where they are computed."""
DEFAULT_TIMEOUT_S = 60.0

_GRACE_S = 0.2
"""After the deadline, so that a request's own error, which says more, comes first."""

T = TypeVar("T")


class InvalidTextError(ValueError):
    """A text cannot be classified, by anyone; no text of its call was answered."""

    def __init__(self, position: int, fault: str) -> None:
        """Name the text, and tell what is wrong with it."""
        super().__init__(f"texts[{position}] {fault}")
        self.position = position
        """Of the text in the list that was given."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """The answers for a list of texts, in their order."""

    labels: list[str]
    scores: list[float]
    """Calibrated probability of each label, 0 to 1."""
    version: int | None
    """The version of the model that gave all the answers; none where no text was given."""
    truncated: list[int]
    """Positions of the texts that were longer than the model reads, and were cut."""


class AsyncClient:
    """The client for asyncio; make and use it within one running event loop.

    Texts go in requests of as many as Triton takes at once, several at a time. What can be tried again is, until the
    call's time is up: at another endpoint at once, at the same after a pause that doubles each time, less a random
    part. An endpoint that fails is left alone for a while, which doubles too, and then tried with one request.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """Ask the Tritons whose gRPC is at `endpoints`, each `host:port`, in turns; connects with the first call.

        At most `concurrency` requests for each endpoint are under way, those of all calls together. A call takes at
        most `timeout_s` seconds, unless it is given another time.

        Raises:
            ValueError: there is no endpoint, or one that is no `host:port`.
        """
        addresses = [endpoints] if isinstance(endpoints, str) else list(endpoints)
        if not addresses:
            raise ValueError("no endpoint was given; at least one `host:port` is needed")
        for address in addresses:
            if ":" not in address or address.startswith(("http://", "https://")):
                raise ValueError(f"{address!r} is no endpoint; the `host:port` of Triton's gRPC is needed")
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; at least 1 is needed")
        self._endpoints = Endpoints([Endpoint(address) for address in addresses])
        self._most_requests = concurrency * len(addresses)
        self._free_requests = asyncio.Semaphore(self._most_requests)
        self._timeout_s = timeout_s

    async def predict(self, texts: Sequence[str], timeout_s: float | None = None) -> Predictions:
        """Classify any number of texts, all by one version.

        Where the version changes meanwhile, the texts that the other one answered are asked again.

        Raises:
            InvalidTextError: a text is empty, too long or no Unicode; the first such text is named, and none was sent.
            TritonUnavailableError: nobody could answer in time; the message has the last reason.
            TritonTimeoutError: no answer came in time.
        """
        _check(texts)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._timeout_s if timeout_s is None else timeout_s)
        starts = range(0, len(texts), MAX_BATCH_SIZE)
        answers: dict[int, Classification] = {}
        stale: Sequence[int] = starts
        for pause in pauses():
            answers |= await self._ask_all(texts, stale, deadline)
            if not stale:
                break
            # What was asked last was answered by the newest version: requests start in order, and may end in any.
            newest = answers[stale[-1]].version
            stale = [start for start in starts if answers[start].version != newest]
            if not stale:
                break
            if loop.time() + pause > deadline:
                raise TritonUnavailableError("the model's version kept changing")
            await asyncio.sleep(pause)
        return _joined([answers[start] for start in starts])

    async def close(self) -> None:
        """Close the connections; calls under way are cancelled."""
        for endpoint in self._endpoints.all:
            await endpoint.triton.close()

    async def __aenter__(self) -> "AsyncClient":
        """Use it in an `async with` statement, which closes it."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.close()

    async def _ask_all(self, texts: Sequence[str], starts: Sequence[int], deadline: float) -> dict[int, Classification]:
        """The answers for the requests that begin at `starts`, by these."""
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
            # After one has failed, or the caller has gone, the others would be work for nobody.
            for task in asking:
                task.cancel()
        for error in [task.exception() for task in done]:
            if error is not None:
                raise error
        if late:  # on requests of other calls
            raise TritonTimeoutError("no answer in time; other calls of this client have all its requests under way")
        return answers

    async def _ask(self, texts: Sequence[str], start: int, deadline: float) -> Classification:
        """The answer of one request, whoever gives it; its texts begin at `start` of the call's."""
        loop = asyncio.get_running_loop()
        waits = pauses()
        while True:
            endpoint = self._endpoints.next(loop.time())
            left = deadline - loop.time()
            try:
                # An endpoint that hangs must not use up the time that another could answer in.
                answer = await endpoint.triton.classify(texts, left / 2 if len(self._endpoints.all) > 1 else left)
            except TextRefusedError as error:
                named = re.search(r"TEXT\[(\d+)\] (.*)", str(error), flags=re.DOTALL)
                position, fault = (int(named[1]), named[2]) if named else (0, f"or one after it: {error}")
                raise InvalidTextError(start + position, fault) from error
            except (TritonUnavailableError, TritonTimeoutError) as error:
                endpoint.failed(loop.time())
                pause = next(waits) if self._endpoints.all_rest(loop.time()) else 0.0
                if loop.time() + pause >= deadline:
                    asked = f"last asked was {endpoint.triton.address}: {error}"
                    raise type(error)(f"no answer in time; {asked}") from error
                await asyncio.sleep(pause)
            else:
                endpoint.answered()
                return answer


class Client:
    """The synchronous client; any number of threads may share one.

    It is an `AsyncClient` in a thread of its own, so it does not survive a fork: make it in the process that uses it.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """As `AsyncClient`.

        Raises:
            ValueError: there is no endpoint, or one that is no `host:port`.
        """

        async def make() -> AsyncClient:
            return AsyncClient(endpoints, concurrency=concurrency, timeout_s=timeout_s)

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sentiment-client", daemon=True)
        self._thread.start()
        try:
            self._client = self._run(make())
        except ValueError:
            self._end()
            raise

    def predict(self, texts: Sequence[str], timeout_s: float | None = None) -> Predictions:
        """Classify any number of texts, all by one version; as `AsyncClient.predict`."""
        if self._loop.is_closed():
            raise RuntimeError("the client is closed")
        return self._run(self._client.predict(texts, timeout_s))

    def close(self) -> None:
        """Close the connections; calls under way in other threads are cancelled."""
        if not self._loop.is_closed():
            self._run(self._client.close())
            self._end()

    def __enter__(self) -> "Client":
        """Use it in a `with` statement, which closes it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # after Ctrl-C, it would be work for nobody
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
