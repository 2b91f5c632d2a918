"""The version that is tried, as one gateway asks it: for a share of the live texts, always the same ones."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from gateway.answer_cache import AnswerCache
from gateway.backlog import Backlog
from gateway.comparing import Comparer, Findings
from gateway.inference import Outcomes, Prediction, infer
from gateway.metrics import Metrics
from gateway.micro_batching import MicroBatcher
from gateway.problems import ModelTimeoutError, OverloadedError
from gateway.server_timing import current_timings
from serving.protocol import CHALLENGER_NAME
from serving.replicas import Replicas
from serving.triton_client import Classification, NotLoadedError, TritonTimeoutError
from settings import Settings
from storage.releases import share_of
from storage.tables import Release

MAX_BYTES = 16 * 1024 * 1024
"""Of answers that are kept; its share of the texts is smaller than the champion's, mostly."""
LONGEST_CALL_S = 2.0
"""After which the champion is asked instead: longer than a text waits on a machine that does what it can."""

log = logging.getLogger(__name__)


class ChallengerModel:
    """The version that is tried, in Triton; make and use it within one event loop."""

    def __init__(self, version: int, tritons: Replicas, metrics: Metrics) -> None:
        """Ask `tritons` for `version`."""
        self._version = version
        self._tritons = tritons
        self._metrics = metrics
        self.cache = AnswerCache(MAX_BYTES)
        self.cache.turn_to(version)

    async def infer(self, texts: list[str], deadline: float) -> Outcomes:
        """Answer as `DeployedModel.infer` does.

        Raises:
            TritonUnavailableError: it cannot answer now.
            TritonTimeoutError: no answer came in time.
        """
        outcomes = await infer(self._classify, texts, deadline)
        for text, outcome in outcomes.items():
            if isinstance(outcome, Prediction):
                self.cache.put(text, outcome)
                self._metrics.answers.labels(outcome.label).inc()
        return outcomes

    async def _classify(self, texts: Sequence[str], timeout_s: float) -> Classification:
        started = time.perf_counter()
        answer = await self._tritons.classify(texts, timeout_s)
        if answer.version != self._version:
            raise NotLoadedError(f"version {answer.version} is tried now, not {self._version}")
        for timing in current_timings.get():
            timing.add(started, answer.phases)
        return answer


class Challenger:
    """A release, for one gateway, from when it hears of it until it hears of its end."""

    def __init__(self, settings: Settings, release: Release, tritons: Replicas, metrics: Metrics) -> None:
        """Of `release`; `tritons` are the champion's."""
        self.release_id = release.id
        self.version = release.version
        self.share = share_of(release)
        """Of the live texts that it answers."""
        self.findings = Findings()
        self._tritons = Replicas(settings.triton_address, lambda: release.version, CHALLENGER_NAME)
        self._model = ChallengerModel(release.version, self._tritons, metrics)
        # Of its own, for one that hangs must not have others refused.
        self._micro_batcher = MicroBatcher(self._model, Backlog(LONGEST_CALL_S), metrics)
        self._counted = metrics.challenger
        comparer = Comparer(
            release,
            tritons,
            self._tritons,
            self.findings,
            settings.release_compared,
            settings.release_max_slowdown,
            metrics,
        )
        self.offer: Callable[[str], None] = comparer.offer
        """Takes a live text that was answered, to compare the versions by it, or does not."""
        self._tasks = [asyncio.create_task(comparer.run()), asyncio.create_task(self._tritons.watch())]

    def takes(self, text: str) -> bool:
        """Whether it answers the text: the same text always, and also as the share grows."""
        return self.share > 0 and position_of(text) < self.share

    def known(self, text: str) -> Prediction | None:
        """The answer for a text that it takes, if it is known."""
        return self._model.cache.get(text)

    def knows(self, text: str) -> bool:
        """The same; to ask does not count as its use."""
        return text in self._model.cache

    @property
    def waiting(self) -> int:
        """Requests that wait for their call."""
        return self._micro_batcher.waiting

    async def predict(
        self, text: str, deadline: float, instead: Callable[[str, float], Awaitable[Prediction]]
    ) -> Prediction:
        """Answer a text that it takes, or have `instead`, which asks the champion, answer what it does not.

        It gets half of the time until `deadline` at most, a time of the event loop's clock; what is left is for the
        champion.

        Raises:
            Exception: what `instead` raises.
        """
        clock = asyncio.get_running_loop().time
        started = clock()
        allowed_s = min(LONGEST_CALL_S, (deadline - started) / 2)
        try:
            prediction = await self._micro_batcher.predict(text, started + allowed_s)
        except (OverloadedError, ModelTimeoutError):
            return await instead(text, deadline)  # it was not asked
        except Exception as error:
            log.debug("The version that is tried did not answer: %s", error)
            failure = error
        else:
            self.findings.answered(1)
            self._counted.labels("answered").inc()
            return prediction
        turned_at = clock()
        prediction = await instead(text, deadline)
        self._counted.labels("failed").inc()
        # Where it is not loaded, Triton has just started. Of time it had too little where the champion needs as much.
        was_short = isinstance(failure, TritonTimeoutError) and clock() - turned_at > allowed_s
        if not was_short and not isinstance(failure, NotLoadedError):
            self.findings.failed(1)
        return prediction

    def retire(self) -> "asyncio.Task[None]":
        """End, when what is under way is answered."""
        for task in self._tasks:
            task.cancel()
        return asyncio.create_task(self._close_after(2 * LONGEST_CALL_S))

    async def close(self) -> None:
        """End at once."""
        for task in self._tasks:
            task.cancel()
        await self._tritons.close()

    async def _close_after(self, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            await self._tritons.close()


def position_of(text: str) -> float:
    """Where a text lies between 0 and 1, evenly and for ever; a canary takes those below its share."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
