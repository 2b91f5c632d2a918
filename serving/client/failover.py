"""Failover among several Tritons: if one fails a call, another takes it over.

`Failover` is for client programs; it waits and retries until the deadline. `serving.client.replicas` is for the
gateway; it retries once, at another Triton, and uses probes to detect Tritons that have recovered.
"""

import asyncio
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from serving.client.errors import TritonTimeoutError, TritonUnavailableError
from serving.client.triton_client import Classification, TritonClient

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_FIRST_REST_S = 0.5
_LONGEST_REST_S = 30.0


class Endpoint:
    """One Triton and its health, as seen by its calls."""

    def __init__(self, client: TritonClient, rests_until: float = 0.0) -> None:
        """Use `client` to call the Triton."""
        self.client = client
        self.rests_until = rests_until
        """Time of the event loop's clock until which it is only called if all other endpoints rest longer."""
        self.failures = 0
        """Number of rests since its last successful call."""
        self.under_way = 0


AnyEndpoint = TypeVar("AnyEndpoint", bound=Endpoint)


class Failover(Generic[AnyEndpoint]):
    """The endpoints of a client; create and use it within one running event loop."""

    retried: tuple[type[Exception], ...] = (TritonUnavailableError, TritonTimeoutError)
    """Errors after which a call is retried."""
    most_tries: int | None = None
    """Maximum tries of a call; None for no limit but the deadline."""
    waits = True
    """If all endpoints rest, a call waits (True) or fails (False)."""
    time_share = 0.5
    """Share of the remaining time for each try if there are several endpoints, so that a hanging one leaves time."""

    def __init__(self, endpoints: list[AnyEndpoint]) -> None:
        """Start with the first of `endpoints`."""
        self.endpoints = endpoints
        self._turn = -1

    async def call_any(self, texts: Sequence[str], deadline: float, is_bulk: bool = False) -> Classification:
        """Classify like `TritonClient.classify`, at any endpoint; `deadline` is a time of the event loop's clock.

        Raises:
            TextRefusedError: a text is empty or not valid.
            TritonUnavailableError: no endpoint can respond now; the call may be retried later.
            TritonTimeoutError: no response arrived in time.
            KeyRefusedError: the API key is missing or refused.
        """
        clock = asyncio.get_running_loop().time
        waits = pauses()
        tries = 0
        reason: tuple[str, Exception] | None = None
        while True:
            tries += 1
            endpoint = self._choose()
            left_s = deadline - clock()
            try:
                time_share = self.time_share if len(self.endpoints) > 1 else 1.0
                return await self._call(endpoint, texts, left_s * time_share, is_bulk)
            except self.retried as error:
                # A timeout, as the last try may have had little time left, tells less than what failed before it.
                if reason is None or not isinstance(error, TritonTimeoutError):
                    reason = endpoint.client.address, error
                all_rest = all(other.rests_until > clock() for other in self.endpoints)
                if tries == self.most_tries or (all_rest and not self.waits):
                    raise
                pause_s = next(waits) if all_rest else 0.0
                if clock() + pause_s >= deadline:
                    address, told = reason
                    raise type(told)(f"no answer in time from {address}: {told}") from error
            await asyncio.sleep(pause_s)

    async def close(self) -> None:
        """Close the connections and cancel the calls in progress."""
        for endpoint in self.endpoints:
            await endpoint.client.close()

    def _choose(self) -> AnyEndpoint:
        """Return the least busy of the best-ranked active endpoints, equals in turn; else the one to wake up first."""
        now = asyncio.get_running_loop().time()
        self._turn = (self._turn + 1) % len(self.endpoints)
        in_turn = self.endpoints[self._turn :] + self.endpoints[: self._turn]
        chosen = min(in_turn, key=lambda one: (max(one.rests_until, now), self._rank(one), one.under_way))
        if chosen.failures and chosen.rests_until <= now:
            # This one call tests whether the endpoint has recovered; it rests for other calls meanwhile.
            self._rest(chosen)
        return chosen

    async def _call(
        self, endpoint: AnyEndpoint, texts: Sequence[str], timeout_s: float, is_bulk: bool
    ) -> Classification:
        started = asyncio.get_running_loop().time()
        endpoint.under_way += 1
        try:
            answer = await endpoint.client.classify(texts, timeout_s, is_bulk)
        except (TritonUnavailableError, TritonTimeoutError) as error:
            self._fail(endpoint, error, started)
            raise
        finally:
            endpoint.under_way -= 1
        self._succeed(endpoint, answer)
        return answer

    def _rank(self, _endpoint: AnyEndpoint) -> int:
        """Return the rank of an endpoint among those that do not rest; lower is better."""
        return 0

    def _fail(self, endpoint: AnyEndpoint, _error: Exception, _started: float) -> None:
        """Record a failed call; `_started` is its start on the event loop's clock."""
        # Concurrent calls that fail together count as one failure.
        if asyncio.get_running_loop().time() >= endpoint.rests_until:
            self._rest(endpoint)

    def _succeed(self, endpoint: AnyEndpoint, _answer: Classification) -> None:
        """Record a successful call."""
        endpoint.failures = 0
        endpoint.rests_until = 0.0

    def _rest(self, endpoint: AnyEndpoint) -> None:
        rest_s = _FIRST_REST_S * 2.0 ** min(endpoint.failures, 16)
        endpoint.failures += 1
        endpoint.rests_until = asyncio.get_running_loop().time() + min(_LONGEST_REST_S, rest_s)


def pauses() -> Iterator[float]:
    """Yield the seconds to wait before each retry.

    Full jitter prevents clients that failed together from retrying together:
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    for number in itertools.count():
        yield random.uniform(0, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(number, 16)))
