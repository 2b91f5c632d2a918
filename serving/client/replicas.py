"""Balances calls over several Tritons: each goes to the least busy healthy Triton that has the deployed version."""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress

from common.errors import PipelineError
from common.periodic import run_periodically
from serving.client import addresses
from serving.client.errors import TritonTimeoutError, TritonUnavailableError
from serving.client.failover import Endpoint, Failover
from serving.client.triton_client import Classification, TritonClient
from serving.model_repo.protocol import MODEL_NAME

WATCH_INTERVAL_S = 1.0
"""Maximum seconds between two checks of the deployed version; a Triton is probed after as long without a response."""
RESOLVE_INTERVAL_S = 5.0
"""Seconds between two DNS lookups."""
PROBE = "Is this ready?"
_PROBE_TIMEOUT_S = 10.0
_LEAST_INTERVAL_S = 0.05
_RETIRING_S = 60.0

log = logging.getLogger(__name__)


class _Replica(Endpoint):
    """The known state of one Triton."""

    def __init__(self, address: str, model: str, *, answers: bool) -> None:
        super().__init__(TritonClient(address, model), 0.0 if answers else math.inf)
        self.version: int | None = None
        self.heard_at = float("-inf")
        self.probe: asyncio.Task[None] | None = None

    @property
    def answers(self) -> bool:
        """True if its last call did not fail; an unhealthy Triton rests until a probe succeeds."""
        return self.rests_until == 0.0


class Replicas(Failover[_Replica]):
    """The Tritons that classify; create and use it within one running event loop.

    A single Triton gets every call, whatever its state, and no probes. With several, a Triton that fails a call gets no
    more calls until a probe succeeds. Another Triton takes the call over; classifying twice does no harm. A Triton with
    another version than the deployed one gets calls only if no healthy Triton has the deployed version.
    """

    retried = (TritonUnavailableError,)
    most_tries = 2
    waits = False
    time_share = 1.0

    def __init__(self, url: str, deployed: Callable[[], int | None] = lambda: None, model: str = MODEL_NAME) -> None:
        """Call `model` on the Tritons of `url`, which `addresses` parses.

        `deployed` returns the deployed version, or None if it is not known. It is called in threads, and may raise a
        PipelineError.
        """
        fixed = addresses.find(url) if addresses.is_fixed(url) else []
        super().__init__([_Replica(address, model, answers=True) for address in fixed])
        self._url = url
        self._deployed = deployed
        self._model = model
        self._expected: int | None = None
        self._retiring: list[asyncio.Task[None]] = []
        """Tasks that close clients whose address has left the DNS name; calls in progress end first."""
        self._resolved_at = float("-inf")
        self._surprise = asyncio.Event()
        """Set when a Triton's state changed, so that the next check runs at once."""

    async def classify(self, texts: Sequence[str], timeout_s: float, is_bulk: bool = False) -> Classification:
        """Classify like `TritonClient.classify`, on one of the Tritons.

        Raises:
            TextRefusedError: a text is empty or not valid.
            TritonUnavailableError: no Triton can respond now; the call may be retried later.
            TritonTimeoutError: no response arrived within `timeout_s` seconds.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        if not self.endpoints:
            await self._resolve()
        return await self.call_any(texts, deadline, is_bulk)

    async def watch(self) -> None:
        """Keep the list of Tritons, their health and their versions up to date until cancelled."""
        await run_periodically(f"Tritons of {self._model}", self._look_and_wait, longest_pause_s=WATCH_INTERVAL_S)

    async def close(self) -> None:
        """Close the connections and cancel the calls in progress."""
        for replica in self.endpoints:
            if replica.probe is not None:
                replica.probe.cancel()
        await super().close()

    def _rank(self, replica: _Replica) -> int:
        """Return 1 if the Triton is known to have another version than the deployed one, else 0."""
        return int(None not in (self._expected, replica.version) and self._expected != replica.version)

    def _fail(self, replica: _Replica, error: Exception, started: float) -> None:
        # If another call to this Triton succeeded meanwhile, only this call's time limit was too short.
        if not replica.answers or (isinstance(error, TritonTimeoutError) and replica.heard_at >= started):
            return
        replica.rests_until = math.inf
        if len(self.endpoints) > 1:
            log.warning("Triton at %s is not asked until it answers again: %s", replica.client.address, error)
            self._surprise.set()

    def _succeed(self, replica: _Replica, answer: Classification) -> None:
        is_one_of_several = len(self.endpoints) > 1
        if is_one_of_several and not replica.answers:
            log.warning("Triton at %s answers again.", replica.client.address)
        super()._succeed(replica, answer)
        replica.heard_at = asyncio.get_running_loop().time()
        if replica.version != answer.version:
            replica.version = answer.version
            if is_one_of_several:
                self._surprise.set()

    async def _look_and_wait(self) -> None:
        await self._look()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._surprise.wait(), WATCH_INTERVAL_S)
            await asyncio.sleep(_LEAST_INTERVAL_S)
        self._surprise.clear()

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        if not addresses.is_fixed(self._url) and now - self._resolved_at >= RESOLVE_INTERVAL_S:
            try:
                await self._resolve()
            except TritonUnavailableError as error:
                log.warning("%s The addresses known so far are used.", error)
        if len(self.endpoints) == 1:
            return
        try:
            self._expected = await asyncio.to_thread(self._deployed)
        finally:
            self._probe_where_needed(now)

    def _probe_where_needed(self, now: float) -> None:
        for replica in self.endpoints:
            is_quiet = now - replica.heard_at >= WATCH_INTERVAL_S
            if (is_quiet or not replica.answers or self._rank(replica)) and (
                replica.probe is None or replica.probe.done()
            ):
                replica.probe = asyncio.create_task(self._probe(replica))

    async def _probe(self, replica: _Replica) -> None:
        with suppress(TritonUnavailableError, TritonTimeoutError):
            await self._call(replica, [PROBE], _PROBE_TIMEOUT_S, is_bulk=False)

    async def _resolve(self) -> None:
        self._resolved_at = asyncio.get_running_loop().time()
        try:
            found = await asyncio.to_thread(addresses.find, self._url)
        except PipelineError as error:
            raise TritonUnavailableError(str(error)) from error
        known = {replica.client.address: replica for replica in self.endpoints}
        is_first = not self.endpoints
        # Tritons that appear later get calls only after a successful probe.
        self.endpoints = [
            known.pop(address) if address in known else _Replica(address, self._model, answers=is_first)
            for address in found
        ]
        self._retiring = [task for task in self._retiring if not task.done()]
        self._retiring += [asyncio.create_task(gone.client.close(_RETIRING_S)) for gone in known.values()]
