"""Asks several Tritons as if they were one: the least busy of those that answer, by the version that is deployed."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from errors import PipelineError
from serving import addresses
from serving.protocol import MODEL_NAME
from serving.triton_client import Classification, TritonClient, TritonTimeoutError, TritonUnavailableError

WATCH_INTERVAL_S = 1.0
"""Longest time between two looks at what is deployed, and without an answer of a Triton before it is probed."""
RESOLVE_INTERVAL_S = 5.0
"""Between two looks at the addresses of a name."""
PROBE = "Is this ready?"
_PROBE_TIMEOUT_S = 10.0
_LEAST_INTERVAL_S = 0.05
_RETIRING_S = 60.0

log = logging.getLogger(__name__)


class _Replica:
    """What is known of one Triton."""

    def __init__(self, address: str, model: str, *, answers: bool) -> None:
        self.client = TritonClient(address, model)
        self.answers = answers
        self.version: int | None = None
        self.under_way = 0
        self.heard_at = float("-inf")
        self.probe: asyncio.Task[None] | None = None

    def rank(self, deployed: int | None) -> int:
        """0 for the good, 1 for one that answers by another version, which is true to its name, 2 for the silent."""
        if not self.answers:
            return 2
        return int(None not in (deployed, self.version) and self.version != deployed)


class Replicas:
    """The Tritons that serve; make and use it within one running event loop.

    One alone is asked whatever is known of it, and only when it is called. Of several, one that fails a call is not
    asked again until it has answered a probe, and another takes the call over: to classify twice does no harm. One
    that answers by another version than the deployed one is asked again when it agrees.
    """

    def __init__(self, url: str, deployed: Callable[[], int | None] = lambda: None, model: str = MODEL_NAME) -> None:
        """Ask the Tritons of `url`, as `addresses` reads it, for `model`.

        `deployed` tells the version that they should answer by, or none where that is not known; it is called in
        threads, and may raise a PipelineError.
        """
        self._url = url
        self._deployed = deployed
        self._model = model
        self._expected: int | None = None
        self._turn = 0
        self._replicas: list[_Replica] = []
        self._retiring: list[asyncio.Task[None]] = []
        """Those whose address is no longer one of the name's; calls under way end first."""
        self._resolved_at = float("-inf")
        self._surprise = asyncio.Event()
        """That something changed, and is to be looked at now."""
        if addresses.is_fixed(url):
            self._replicas = [_Replica(address, model, answers=True) for address in addresses.find(url)]

    async def classify(self, texts: Sequence[str], timeout_s: float) -> Classification:
        """Classify as `TritonClient.classify` does.

        Raises:
            TextRefusedError: a text is empty or cannot be read.
            TritonUnavailableError: nobody can answer now; trying again later makes sense.
            TritonTimeoutError: no answer came within `timeout_s` seconds.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        if not self._replicas:
            await self._resolve()
        first = self._choose()
        try:
            return await self._ask(first, texts, timeout_s)
        except TritonUnavailableError:
            second = self._choose()
            left_s = deadline - asyncio.get_running_loop().time()
            if second is first or second.rank(self._expected) == 2 or left_s <= 0:
                raise
            return await self._ask(second, texts, left_s)

    async def watch(self) -> None:
        """Keep knowing which Tritons there are and what they serve, until cancelled."""
        while True:
            await self._look()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._surprise.wait(), WATCH_INTERVAL_S)
                await asyncio.sleep(_LEAST_INTERVAL_S)
            self._surprise.clear()

    async def close(self) -> None:
        """Close the connections; calls under way are cancelled."""
        for replica in self._replicas:
            if replica.probe is not None:
                replica.probe.cancel()
            await replica.client.close()

    def _choose(self) -> _Replica:
        if len(self._replicas) == 1:
            return self._replicas[0]
        # Equals are taken in turns.
        self._turn = (self._turn + 1) % len(self._replicas)
        in_turn = self._replicas[self._turn :] + self._replicas[: self._turn]
        return min(in_turn, key=lambda replica: (replica.rank(self._expected), replica.under_way))

    async def _ask(self, replica: _Replica, texts: Sequence[str], timeout_s: float) -> Classification:
        started = asyncio.get_running_loop().time()
        replica.under_way += 1
        try:
            answer = await replica.client.classify(texts, timeout_s)
        except TritonTimeoutError:
            # Where another of its calls was answered meanwhile, only this one's time was short.
            if replica.heard_at < started:
                self._hear_failure(replica, "no answer in time")
            raise
        except TritonUnavailableError as error:
            self._hear_failure(replica, error)
            raise
        finally:
            replica.under_way -= 1
        if len(self._replicas) > 1 and not replica.answers:
            log.warning("Triton at %s answers again.", replica.client.address)
        replica.answers = True
        replica.heard_at = asyncio.get_running_loop().time()
        if replica.version != answer.version:
            replica.version = answer.version
            if len(self._replicas) > 1:
                self._surprise.set()
        return answer

    def _hear_failure(self, replica: _Replica, reason: object) -> None:
        if not replica.answers:
            return
        replica.answers = False
        if len(self._replicas) > 1:
            log.warning("Triton at %s is not asked until it answers again: %s", replica.client.address, reason)
            self._surprise.set()

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        if not addresses.is_fixed(self._url) and now - self._resolved_at >= RESOLVE_INTERVAL_S:
            try:
                await self._resolve()
            except TritonUnavailableError as error:
                log.warning("%s The addresses known so far are used.", error)
        if len(self._replicas) == 1:
            return
        try:
            self._expected = await asyncio.to_thread(self._deployed)
        except (PipelineError, OSError) as error:
            log.warning("Which version is deployed cannot be told: %s", error)
        for replica in self._replicas:
            is_quiet = now - replica.heard_at >= WATCH_INTERVAL_S
            if (is_quiet or replica.rank(self._expected)) and (replica.probe is None or replica.probe.done()):
                replica.probe = asyncio.create_task(self._probe(replica))

    async def _probe(self, replica: _Replica) -> None:
        with suppress(TritonUnavailableError, TritonTimeoutError):
            await self._ask(replica, [PROBE], _PROBE_TIMEOUT_S)

    async def _resolve(self) -> None:
        self._resolved_at = asyncio.get_running_loop().time()
        try:
            found = await asyncio.to_thread(addresses.find, self._url)
        except PipelineError as error:
            raise TritonUnavailableError(str(error)) from error
        known = {replica.client.address: replica for replica in self._replicas}
        is_first = not self._replicas
        # Later ones are asked when they have answered a probe.
        self._replicas = [
            known.pop(address) if address in known else _Replica(address, self._model, answers=is_first)
            for address in found
        ]
        self._retiring = [task for task in self._retiring if not task.done()]
        self._retiring += [asyncio.create_task(gone.client.close(_RETIRING_S)) for gone in known.values()]
