"""Samples texts with their predictions and writes the sample to the database, outside of requests."""

import asyncio
import math
import random
import time
from collections.abc import Sequence

from common.periodic import run_periodically, try_once
from gateway.monitoring.metrics import Metrics
from serving.client.prediction import Prediction
from storage.lazy_database import Storage
from storage.sampled_predictions import AnsweredText, add_sample

INTERVAL_S = 10.0
"""Seconds between two writes. All texts of an interval have the same probability of being sampled."""
_LAST_WRITE_S = 3.0
"""Time limit in seconds of the last write, when the gateway shuts down."""


class Sampler:
    """A reservoir sample of the texts of each interval; create and use it within one event loop.

    It uses Algorithm L of K.-H. Li, "Reservoir-Sampling Algorithms of Time Complexity O(n(1 + log(N/n)))", ACM
    Transactions on Mathematical Software 20(4), 1994. The algorithm draws how many texts to skip, so that nearly every
    text costs one subtraction and one comparison.
    """

    def __init__(self, storage: Storage, per_minute: int, keeps_texts: bool, metrics: Metrics) -> None:
        """Write up to `per_minute` texts per minute to `storage`, whose database may be down."""
        self._storage = storage
        self._capacity = max(1, round(per_minute * INTERVAL_S / 60))
        self._keeps_texts = keeps_texts
        self._kept = metrics.sampled.labels("kept")
        self._lost = metrics.sampled.labels("lost")
        self._taken: list[AnsweredText] = []
        self._pass_over = 0
        """Number of texts to skip before the next sampled one."""
        self._weight = 1.0
        """Algorithm L's W: the largest key in the reservoir, if each text had a random key."""

    def offer(self, text: str, prediction: Prediction) -> None:
        """Sample `text` with its prediction, or skip it."""
        if self._pass_over:
            self._pass_over -= 1
        else:
            self.offer_all((text,), (prediction,))

    def offer_all(self, texts: Sequence[str], predictions: Sequence[Prediction]) -> None:
        """Sample some of `texts`, or none, with their predictions."""
        position = self._pass_over
        while position < len(texts):
            self._take(texts[position], predictions[position])
            position += 1 + self._draw_gap()
        self._pass_over = position - len(texts)

    def _take(self, text: str, prediction: Prediction) -> None:
        answered = AnsweredText(
            text,
            prediction.label,
            prediction.probabilities,
            prediction.version,
            prediction.truncated,
            time.monotonic(),
        )
        if len(self._taken) < self._capacity:
            self._taken.append(answered)
        else:
            self._taken[random.randrange(self._capacity)] = answered

    def _draw_gap(self) -> int:
        """Draw how many texts to skip after a sampled one."""
        if len(self._taken) < self._capacity:
            return 0
        self._weight *= math.exp(-random.expovariate(1) / self._capacity)
        return math.floor(-random.expovariate(1) / math.log1p(-min(self._weight, 1 - 1e-12)))

    async def keep_writing(self) -> None:
        """Write the sample of each interval, until cancelled."""
        # The pause does not grow after failures, which would thin out the sample.
        await run_periodically(
            "prediction sample", self._write_next, INTERVAL_S, delay_s=INTERVAL_S, longest_pause_s=INTERVAL_S
        )

    async def _write_next(self) -> None:
        # Waits for texts, because writing nothing would count as a success even if the database is down.
        while not self._taken:  # noqa: ASYNC110 - to notice each text at once would cost the requests time
            await asyncio.sleep(INTERVAL_S)
        await self.write()

    async def end(self) -> None:
        """Write the last sample, unless the database is too slow."""
        await try_once(self.write, _LAST_WRITE_S, "The last sampled predictions are lost")

    async def write(self) -> None:
        """Write the sample. If the database fails, the sample is discarded, so that memory stays bounded."""
        taken = self._taken
        self._taken, self._pass_over, self._weight = [], 0, 1.0
        if not taken:
            return
        try:
            await asyncio.to_thread(self._write, taken)
        except Exception:
            self._lost.inc(len(taken))
            raise
        self._kept.inc(len(taken))

    def _write(self, taken: list[AnsweredText]) -> None:
        add_sample(self._storage.open(), taken, self._keeps_texts)
