"""The version that is tried, as one gateway asks it: for a share of the live texts, always the same ones."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence

from gateway.answer_cache import AnswerCache
from gateway.backlog import Backlog
from gateway.comparing import Comparer, Findings
from gateway.deployed_model import DeployedModel
from gateway.inference import Outcomes, Prediction, infer
from gateway.metrics import Metrics
from gateway.micro_batching import MicroBatcher
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
    """Answers by the challenger, and by the champion what that fails to answer."""

    def __init__(
        self, version: int, tritons: Replicas, champion: DeployedModel, findings: Findings, metrics: Metrics
    ) -> None:
        """Ask `tritons` for `version`."""
        self._version = version
        self._tritons = tritons
        self._champion = champion
        self._findings = findings
        self._metrics = metrics
        self.cache = AnswerCache(MAX_BYTES)
        self.cache.turn_to(version)

    async def infer(self, texts: list[str], deadline: float) -> Outcomes:
        """Answer as `DeployedModel.infer` does; each answer names the version that gave it.

        Raises:
            TritonUnavailableError: nobody can answer now.
            TritonTimeoutError: no answer came in time.
        """
        now = asyncio.get_running_loop().time()
        # What is left is for the champion.
        allowed_s = min(LONGEST_CALL_S, (deadline - now) / 2)
        outcomes: Outcomes = {}
        is_to_blame = True
        try:
            outcomes = await infer(self._classify, texts, now + allowed_s)
        except NotLoadedError:
            is_to_blame = False  # Triton has just started
        except TritonTimeoutError:
            is_to_blame = allowed_s == LONGEST_CALL_S
        except Exception as error:
            log.debug("The version that is tried did not answer: %s", error)
        answered = {text: outcome for text, outcome in outcomes.items() if isinstance(outcome, Prediction)}
        for text, prediction in answered.items():
            self.cache.put(text, prediction)
            self._metrics.answers.labels(prediction.label).inc()
        if answered:
            self._findings.answered(len(answered))
            self._metrics.challenger.labels("answered").inc(len(answered))
        failed = [text for text in texts if text not in answered]
        if not failed:
            return outcomes
        instead = await self._champion.infer(failed, deadline)
        rescued = sum(isinstance(outcome, Prediction) for outcome in instead.values())
        self._metrics.challenger.labels("failed").inc(rescued)
        if rescued and is_to_blame:
            self._findings.failed(rescued)
        return outcomes | instead

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

    def __init__(
        self,
        settings: Settings,
        release: Release,
        tritons: Replicas,
        champion: DeployedModel,
        metrics: Metrics,
    ) -> None:
        """Of `release`; `tritons` are the champion's."""
        self.release_id = release.id
        self.version = release.version
        self.share = share_of(release)
        """Of the live texts that it answers."""
        self.findings = Findings()
        self._tritons = Replicas(settings.triton_address, lambda: release.version, CHALLENGER_NAME)
        self._model = ChallengerModel(release.version, self._tritons, champion, self.findings, metrics)
        # Of its own, for one that hangs must not have others refused.
        self._micro_batcher = MicroBatcher(self._model, Backlog(LONGEST_CALL_S), metrics)
        comparer = Comparer(
            release,
            tritons,
            self._tritons,
            self.findings,
            settings.release_compared,
            settings.release_max_slowdown,
            champion.is_busy,
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

    async def predict(self, text: str, deadline: float) -> Prediction:
        """Answer a text that it takes, as `MicroBatcher.predict` does; where it has no time, the champion may."""
        return await self._micro_batcher.predict(text, deadline)

    def retire(self) -> "asyncio.Task[None]":
        """End, when what is under way is answered."""
        for task in self._tasks:
            task.cancel()
        return asyncio.create_task(self._close_after(2 * LONGEST_CALL_S))

    async def _close_after(self, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            await self._tritons.close()


def position_of(text: str) -> float:
    """Where a text lies between 0 and 1, evenly and for ever; a canary takes those below its share."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
