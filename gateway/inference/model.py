"""The gateway's interface to a model in Triton: it takes distinct texts and returns a prediction for each."""

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeAlias

from gateway.inference.answer_cache import AnswerCache
from gateway.monitoring.metrics import Metrics
from serving.client.errors import TextRefusedError
from serving.client.prediction import Prediction
from serving.client.triton_client import Classification

Outcomes: TypeAlias = dict[str, Prediction | TextRefusedError]
"""The result for each text of a call: a prediction or a refusal."""


class Model(ABC):
    """A model with a cache of its predictions. Create and use it within one event loop."""

    def __init__(self, cache: AnswerCache, metrics: Metrics) -> None:
        """Store predictions in `cache`, and count them in `metrics`."""
        self.cache = cache
        self._metrics = metrics

    @abstractmethod
    async def classify(self, texts: Sequence[str], timeout_s: float, is_bulk: bool = False) -> Classification:
        """Call Triton once with at most `MAX_BATCH_SIZE` texts.

        `is_bulk` marks texts of a longer list, so that live requests go first.

        Raises:
            TextRefusedError: the model refused a text.
            TritonUnavailableError: no model can respond now.
            TritonTimeoutError: no response came in time.
        """

    async def predict(self, texts: Sequence[str], deadline: float, is_bulk: bool = False) -> Outcomes:
        """Return predictions for distinct texts before `deadline`, a time of the event loop's clock.

        They come from one `classify` call, unless a text is refused: then each text is sent alone.

        Raises:
            TritonUnavailableError: no model can respond now.
            TritonTimeoutError: no response came in time.
        """
        try:
            answer = await self.classify(texts, deadline - asyncio.get_running_loop().time(), is_bulk)
        except TextRefusedError as error:
            if len(texts) == 1:
                return {texts[0]: error}
            # Triton fails the whole call for one bad text. Concurrent single-text calls share Triton's next batches.
            singles = await asyncio.gather(*(self.predict([text], deadline, is_bulk) for text in texts))
            return {text: outcome for single in singles for text, outcome in single.items()}
        outcomes: Outcomes = {}
        cut = set(answer.truncated)
        width = len(answer.probabilities) // len(texts)
        for position, (text, label, score) in enumerate(zip(texts, answer.labels, answer.scores, strict=True)):
            outcomes[text] = prediction = Prediction(
                sys.intern(label),  # cached predictions share one string per label
                round(score, 4),
                answer.version,
                position in cut,
                answer.probabilities[position * width : (position + 1) * width],
            )
            self.cache.put(text, prediction)
            self._metrics.answers.labels(label).inc()
        return outcomes
