"""The version on trial in one gateway: it handles a share of the live texts, always the same texts."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence

from common.settings import Settings
from gateway.canary.shadow_compare import Comparer, Findings
from gateway.http.problems import ModelTimeoutError, OverloadedError
from gateway.http.server_timing import add_call
from gateway.inference.answer_cache import AnswerCache
from gateway.inference.micro_batching import MicroBatcher
from gateway.inference.model import Model
from gateway.inference.predictor import PredictLive
from gateway.load_control.backlog import Backlog
from gateway.monitoring.metrics import Metrics
from serving.client.errors import NoRoomError, NotLoadedError, TritonTimeoutError
from serving.client.prediction import Prediction
from serving.client.replicas import Replicas
from serving.client.triton_client import Classification
from serving.model_repo.protocol import CHALLENGER_NAME
from storage.releases import share_of
from storage.tables import Release

MAX_BYTES = 16 * 1024 * 1024
"""Maximum size of its cache: smaller than the champion's, because it mostly handles a smaller share of the texts."""
LONGEST_CALL_S = 2.0
"""Seconds before the champion handles the text instead: longer than a text waits on a machine that can cope."""

log = logging.getLogger(__name__)


class ChallengerModel(Model):
    """The version on trial, in Triton. Create and use it within one event loop."""

    def __init__(self, version: int, tritons: Replicas, metrics: Metrics) -> None:
        """Call `version` through `tritons`."""
        super().__init__(AnswerCache(MAX_BYTES), metrics)
        self.cache.turn_to(version)
        self._version = version
        self._tritons = tritons

    async def classify(self, texts: Sequence[str], timeout_s: float, is_bulk: bool = False) -> Classification:
        """Call Triton as in `Model.classify`; a response from another version is an error (NotLoadedError)."""
        started = time.perf_counter()
        answer = await self._tritons.classify(texts, timeout_s, is_bulk)
        if answer.version != self._version:
            raise NotLoadedError(f"version {answer.version} is on trial now, not {self._version}")
        add_call(started, answer.phases)
        return answer


class Challenger:
    """A release in one gateway, from when the gateway reads its start until it reads its end."""

    def __init__(self, settings: Settings, release: Release, tritons: Replicas, metrics: Metrics) -> None:
        """Try the version of `release`; `tritons` are the champion's."""
        self.release_id = release.id
        self.version = release.version
        self.share = share_of(release)
        """Share of live texts that the version on trial handles, 0 to 1."""
        self.findings = Findings()
        self._tritons = Replicas(settings.triton_address, lambda: release.version, CHALLENGER_NAME)
        model = ChallengerModel(release.version, self._tritons, metrics)
        self.cache = model.cache
        # It has its own backlog, so that a hanging version does not cause refusals for other requests.
        self._micro_batcher = MicroBatcher(model, Backlog(LONGEST_CALL_S), metrics)
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
        """Offers a predicted live text for the comparison of both versions, which may skip it."""
        self._tasks = [asyncio.create_task(comparer.run()), asyncio.create_task(self._tritons.watch())]

    def takes(self, text: str) -> bool:
        """Return whether the version on trial handles the text. A text stays with it as the share grows."""
        return self.share > 0 and position_of(text) < self.share

    @property
    def waiting(self) -> int:
        """Number of requests that wait for their call."""
        return self._micro_batcher.waiting

    async def predict(self, text: str, deadline: float, instead: PredictLive) -> Prediction:
        """Return the prediction of the version on trial, or if it fails, that of `instead`, which calls the champion.

        The version on trial gets at most half of the time until `deadline`, a time of the event loop's clock. The
        champion gets the rest.

        Raises:
            Exception: any exception that `instead` raises.
        """
        clock = asyncio.get_running_loop().time
        started = clock()
        allowed_s = min(LONGEST_CALL_S, (deadline - started) / 2)
        try:
            prediction = await self._micro_batcher.predict(text, started + allowed_s)
        except (OverloadedError, ModelTimeoutError):
            return await instead(text, deadline)  # the version on trial was not called
        except Exception as error:
            log.debug("The version on trial did not respond: %s", error)
            failure = error
        else:
            self.findings.answered(1)
            self._counted.labels("answered").inc()
            return prediction
        prediction = await instead(text, deadline)
        self._counted.labels("failed").inc()
        if isinstance(failure, TritonTimeoutError):
            self.findings.late(1)  # the caller may have set a short timeout or filled the queue
        elif not isinstance(failure, (NotLoadedError, NoRoomError)):  # Triton has just started or is full
            self.findings.failed(1)
        return prediction

    def retire(self) -> "asyncio.Task[None]":
        """Stop comparing now, and close the connections when calls under way have had time to end."""
        for task in self._tasks:
            task.cancel()
        return asyncio.create_task(self._close_after(2 * LONGEST_CALL_S))

    async def close(self) -> None:
        """Close the connections at once."""
        for task in self._tasks:
            task.cancel()
        await self._tritons.close()

    async def _close_after(self, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        finally:
            await self._tritons.close()


def position_of(text: str) -> float:
    """Return a text's fixed position from 0 to 1, evenly distributed; a canary handles texts below its share."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
