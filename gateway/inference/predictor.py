"""The interface between the HTTP routes and the model."""

import math
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from gateway.inference.answer_cache import AnswerCache
from gateway.inference.batch_splitting import BatchSplitter
from gateway.inference.deployed_model import DeployedModel
from gateway.inference.micro_batching import MicroBatcher
from gateway.load_control.backlog import Backlog
from gateway.monitoring.metrics import Metrics
from gateway.monitoring.sampling import Sampler
from serving.client.call_statistics import CallStatistics
from serving.client.prediction import Prediction
from serving.client.replicas import Replicas
from serving.client.triton_client import Classification

LONGEST_LIVE_WAIT_S = 2.0
"""Maximum wait for one prediction. Requests that would wait longer must retry, so the queue left by a flood of requests
is gone within this time."""


PredictLive: TypeAlias = Callable[[str, float], Awaitable[Prediction]]
"""Function that predicts a text before a deadline, a time of the event loop's clock."""


class LiveTrial(Protocol):
    """A version on trial with live texts (`gateway.canary.challenger`)."""

    cache: AnswerCache
    """Cached predictions of the version on trial."""
    offer: Callable[[str], None]
    """Offers a predicted text for the comparison of both versions, which may skip it."""

    @property
    def waiting(self) -> int:
        """Number of requests that wait for their call."""

    def takes(self, text: str) -> bool:
        """Return whether the version on trial handles the text."""

    async def predict(self, text: str, deadline: float, instead: PredictLive) -> Prediction:
        """Return the prediction of the version on trial, or that of `instead` if it fails."""


class Predictor:
    """Predicts texts with the deployed model. Create and use it within one event loop.

    While no model can respond, cached texts still get predictions: a version never changes, so it would predict the
    same, and each prediction names its version. `DeployedModel.ready` shows that new texts get no predictions.
    """

    def __init__(
        self,
        tritons: Replicas,
        cache: AnswerCache,
        statistics: CallStatistics,
        metrics: Metrics,
        sampler: Sampler | None,
    ) -> None:
        """Call `tritons` for texts that are not in `cache`; the caller closes `tritons`.

        Predictions are offered to `sampler`, if there is one.
        """
        self._cache = cache
        self._sampler = sampler
        self.model = DeployedModel(tritons, cache, statistics, metrics)
        """The deployed model, with its readiness and version."""
        self.live_backlog = Backlog(LONGEST_LIVE_WAIT_S)
        self.batch_backlog = Backlog(math.inf)
        self._micro_batcher = MicroBatcher(self.model, self.live_backlog, metrics)
        self._batch_splitter = BatchSplitter(self.model, self.batch_backlog)
        self.challenger: LiveTrial | None = None
        """The version on trial with live texts, if any."""
        metrics.micro_batch_queue.set_function(self._waiting)

    def known(self, text: str) -> Prediction | None:
        """Return the cached prediction for a request's text, or None. A hit is offered to the sampler."""
        challenger = self.challenger
        if challenger is not None and challenger.takes(text):
            prediction = challenger.cache.get(text)
            self._cache.count(is_hit=prediction is not None)
        else:
            prediction = self._cache.get(text)
        if prediction is not None and self._sampler is not None:
            self._sampler.offer(text, prediction)
        return prediction

    def knows(self, text: str) -> bool:
        """Return whether `text` is cached, without counting it as used."""
        challenger = self.challenger
        if challenger is not None and challenger.takes(text):
            return text in challenger.cache
        return text in self._cache

    async def predict_live(self, text: str, deadline: float) -> Prediction:
        """Return a new prediction for one text before `deadline`, a time of the event loop's clock.

        Raises:
            OverloadedError: too much other work was accepted before.
            TextRefusedError: the model refused the text.
            TritonUnavailableError: no model can respond now.
            TritonTimeoutError: no response came in time.
            ModelTimeoutError: no response can come in time.
        """
        self.model.check_circuit()
        challenger = self.challenger
        if challenger is not None and challenger.takes(text):
            prediction = await challenger.predict(text, deadline, self._micro_batcher.predict)
        else:
            prediction = await self._micro_batcher.predict(text, deadline)
        if challenger is not None:
            challenger.offer(text)
        if self._sampler is not None:
            self._sampler.offer(text, prediction)
        return prediction

    async def predict_batch(self, texts: list[str], deadline: float) -> list[Prediction]:
        """Return the deployed version's predictions for all texts before `deadline`, a time of the event loop's clock.

        Raises:
            OverloadedError: too much other work was accepted before.
            TextsRefusedError: the model refused some texts.
            TritonUnavailableError: no model can respond now.
            TritonTimeoutError: no response came in time.
            ModelTimeoutError: no response can come in time.
        """
        distinct = set(texts)
        known = {text: prediction for text in distinct if (prediction := self._cache.get(text)) is not None}
        if len(known) < len(distinct):
            self.model.check_circuit()
        predictions = await self._batch_splitter.predict(texts, known, deadline)
        if self._sampler is not None:
            self._sampler.offer_all(texts, predictions)
        return predictions

    async def classify(self, texts: list[str], deadline: float) -> list[Classification]:
        """Return full classifications of texts, as `BatchSplitter.classify` does.

        Raises:
            OverloadedError: too much other work was accepted before.
            TextRefusedError: the model refused a text.
            TritonUnavailableError: no model can respond now.
            TritonTimeoutError: no response came in time.
            ModelTimeoutError: no response can come in time.
        """
        self.model.check_circuit()
        return await self._batch_splitter.classify(texts, deadline)

    def _waiting(self) -> int:
        return self._micro_batcher.waiting + (self.challenger.waiting if self.challenger else 0)
