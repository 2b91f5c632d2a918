"""What the routes ask: the one object between HTTP and the model."""

import math

from gateway.answer_cache import AnswerCache
from gateway.backlog import Backlog
from gateway.batch_splitting import BatchSplitter
from gateway.challenger import Challenger
from gateway.deployed_model import DeployedModel
from gateway.examining import Examiner
from gateway.inference import Prediction
from gateway.metrics import Metrics
from gateway.micro_batching import MicroBatcher
from gateway.sampling import Sampler
from serving.call_statistics import CallStatistics
from serving.replicas import Replicas
from serving.triton_client import Classification

LONGEST_LIVE_WAIT_S = 2.0
"""Who would wait longer for one answer is told to come again. So a queue that a flood has left is gone by then."""


class Predictor:
    """Answers texts by the deployed model; make and use it within one event loop.

    While nobody can answer, texts whose answers are known still get them: a version never changes, so they are what
    it would say, and the answer names it. A request that could be served is not failed to make a point; that new
    texts cannot be answered is what `ready` says.
    """

    def __init__(
        self,
        tritons: Replicas,
        cache: AnswerCache,
        statistics: CallStatistics,
        metrics: Metrics,
        live_deadline_s: float,
        batch_deadline_s: float,
        sampler: Sampler | None,
    ) -> None:
        """Answer through `tritons`, which stay the caller's to close, what `cache` does not know.

        What is answered is offered to `sampler`, if there is one.
        """
        self.live_deadline_s = live_deadline_s
        self.batch_deadline_s = batch_deadline_s
        self._cache = cache
        self._sampler = sampler
        self._model = DeployedModel(tritons, cache, statistics, metrics)
        self.live_backlog = Backlog(LONGEST_LIVE_WAIT_S)
        self.batch_backlog = Backlog(math.inf)
        self._micro_batcher = MicroBatcher(self._model, self.live_backlog, metrics)
        self._batch_splitter = BatchSplitter(self._model, self.batch_backlog)
        self._examiner = Examiner(self._model, self.batch_backlog)
        self.challenger: Challenger | None = None
        """The version that is tried on live texts, if one is."""
        metrics.micro_batch_queue.set_function(self._waiting)

    def known(self, text: str) -> Prediction | None:
        """The answer for `text`, which is being asked for, if it is known."""
        challenger = self.challenger
        if challenger is not None and challenger.takes(text):
            prediction = challenger.known(text)
            self._cache.count(is_hit=prediction is not None)
        else:
            prediction = self._cache.get(text)
        if prediction is not None and self._sampler is not None:
            self._sampler.offer(text, prediction)
        return prediction

    def knows(self, text: str) -> bool:
        """Whether the answer for `text` is known; to ask does not count as its use."""
        challenger = self.challenger
        if challenger is not None and challenger.takes(text):
            return challenger.knows(text)
        return text in self._cache

    async def predict_live(self, text: str, deadline: float) -> Prediction:
        """Ask the model for one text, to be answered until `deadline`, a time of the event loop's clock.

        Raises:
            OverloadedError: too much is to be done before.
            TextRefusedError: the model refuses the text.
            TritonUnavailableError: nobody can answer now.
            TritonTimeoutError: no answer came in time.
            ModelTimeoutError: none can come in time.
        """
        self._model.check_circuit()
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
        """Answer all texts, by the version that serves, until `deadline`, a time of the event loop's clock.

        Raises:
            OverloadedError: too much is to be done before.
            TextsRefusedError: the model refuses texts.
            TritonUnavailableError: nobody can answer now.
            TritonTimeoutError: no answer came in time.
            ModelTimeoutError: none can come in time.
        """
        distinct = set(texts)
        known = {text: prediction for text in distinct if (prediction := self._cache.get(text)) is not None}
        if len(known) < len(distinct):
            self._model.check_circuit()
        predictions = await self._batch_splitter.predict(texts, known, deadline)
        if self._sampler is not None:
            self._sampler.offer_all(texts, predictions)
        return predictions

    async def examine(self, texts: list[str], deadline: float) -> list[Classification]:
        """Ask the model for all that it tells of texts, as `Examiner.examine` does.

        Raises:
            OverloadedError: too much is to be done before.
            TextRefusedError: the model refuses a text.
            TritonUnavailableError: nobody can answer now.
            TritonTimeoutError: no answer came in time.
            ModelTimeoutError: none can come in time.
        """
        self._model.check_circuit()
        return await self._examiner.examine(texts, deadline)

    def _waiting(self) -> int:
        return self._micro_batcher.waiting + (self.challenger.waiting if self.challenger else 0)

    @property
    def version(self) -> int | None:
        """The version that answered last; none before the first answer."""
        return self._model.version

    @property
    def ready(self) -> bool:
        """Whether the model can answer, as of the last time that it was asked, about a second ago at most."""
        return self._model.ready

    @property
    def failure(self) -> Exception | None:
        """What the model did instead when it was last asked; none where it can answer, or was not asked yet."""
        return self._model.failure

    async def watch(self) -> None:
        """Keep knowing whether the model can answer, and which version does, until cancelled."""
        await self._model.watch()
