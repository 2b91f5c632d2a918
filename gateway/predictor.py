"""What the routes ask: the one object between HTTP and the model."""

import asyncio

from gateway.answer_cache import AnswerCache
from gateway.batch_splitting import BatchSplitter
from gateway.deployed_model import DeployedModel
from gateway.inference import Prediction
from gateway.metrics import Metrics
from gateway.micro_batching import MicroBatcher
from serving.call_statistics import CallStatistics
from serving.replicas import Replicas

LIVE_DEADLINE_S = 10.0
"""A person who waits for one answer has gone by then."""

BATCH_DEADLINE_S = 60.0
"""The longest batch of long texts on two cores, with others beside it; proxies commonly give up after as long."""


class Predictor:
    """Answers texts by the deployed model; make and use it within one event loop.

    While nobody can answer, texts whose answers are known still get them: a version never changes, so they are what
    it would say, and the answer names it. A request that could be served is not failed to make a point; that new
    texts cannot be answered is what `ready` says.
    """

    def __init__(self, tritons: Replicas, cache: AnswerCache, statistics: CallStatistics, metrics: Metrics) -> None:
        """Answer through `tritons`, which stay the caller's to close, what `cache` does not know."""
        self._cache = cache
        self._model = DeployedModel(tritons, cache, statistics, metrics)
        self._micro_batcher = MicroBatcher(self._model, metrics)
        self._batch_splitter = BatchSplitter(self._model)

    async def predict_live(self, text: str) -> Prediction:
        """Answer one text as soon as possible.

        Raises:
            TextRefusedError: the model refuses the text.
            TritonUnavailableError: nobody can answer now.
            TritonTimeoutError: no answer came within `LIVE_DEADLINE_S`.
        """
        known = self._cache.get(text)
        if known is not None:
            return known
        return await self._micro_batcher.predict(text, asyncio.get_running_loop().time() + LIVE_DEADLINE_S)

    async def predict_batch(self, texts: list[str]) -> list[Prediction]:
        """Answer all texts, by one version of the model.

        Raises:
            TextsRefusedError: the model refuses texts.
            TritonUnavailableError: nobody can answer now.
            TritonTimeoutError: no answer came within `BATCH_DEADLINE_S`.
        """
        known = {text: prediction for text in set(texts) if (prediction := self._cache.get(text)) is not None}
        return await self._batch_splitter.predict(texts, known, asyncio.get_running_loop().time() + BATCH_DEADLINE_S)

    @property
    def ready(self) -> bool:
        """Whether the model can answer, as of the last time that it was asked, about a second ago at most."""
        return self._model.ready

    async def watch(self) -> None:
        """Keep knowing whether the model can answer, and which version does, until cancelled."""
        await self._model.watch()
