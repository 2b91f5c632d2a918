"""Takes a sample of the texts that are answered and has it written to the database, at no cost to a request."""

import asyncio
import logging
import math
import random
import time
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from errors import PipelineError
from gateway.inference import Prediction
from gateway.metrics import Metrics
from storage.sampled_predictions import AnsweredText, add_sample
from storage.storage import Storage

INTERVAL_S = 10.0
"""Between two writes. Of the texts of an interval, each is as likely to be in the sample as any other."""
_LAST_WRITE_S = 3.0
"""For the last one, when the gateway ends."""

log = logging.getLogger(__name__)


class Sampler:
    """A sample of the texts of each interval; make and use it within one event loop.

    A reservoir of as many texts as the interval may give: Algorithm L of K.-H. Li, "Reservoir-Sampling Algorithms of
    Time Complexity O(n(1 + log(N/n)))", ACM Transactions on Mathematical Software 20(4), 1994. It draws how many texts
    to pass over, so that nearly every text costs a subtraction and a comparison, however many there are.
    """

    def __init__(self, storage: Storage, per_minute: int, keeps_texts: bool, metrics: Metrics) -> None:
        """Have up to `per_minute` texts a minute written to `storage`, which may be down."""
        self._storage = storage
        self._capacity = max(1, round(per_minute * INTERVAL_S / 60))
        self._keeps_texts = keeps_texts
        self._kept = metrics.sampled.labels("kept")
        self._lost = metrics.sampled.labels("lost")
        self._is_failing = False
        self._taken: list[AnsweredText] = []
        self._pass_over = 0
        """Texts until the next that is taken."""
        self._weight = 1.0
        """Algorithm L's W: the largest of the keys that are in the reservoir, were each text given a random one."""

    def offer(self, text: str, prediction: Prediction) -> None:
        """Take `text` with its answer, or do not."""
        if self._pass_over:
            self._pass_over -= 1
        else:
            self.offer_all((text,), (prediction,))

    def offer_all(self, texts: Sequence[str], predictions: Sequence[Prediction]) -> None:
        """Take some of `texts`, or none, with their answers."""
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
        """How many texts to pass over, after one was taken."""
        if len(self._taken) < self._capacity:
            return 0
        self._weight *= math.exp(-random.expovariate(1) / self._capacity)
        return math.floor(-random.expovariate(1) / math.log1p(-min(self._weight, 1 - 1e-12)))

    async def keep_writing(self) -> None:
        """Write what was taken, interval after interval, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self.write()

    async def end(self) -> None:
        """Write what was taken last, if the database takes it in time."""
        try:
            await asyncio.wait_for(self.write(), _LAST_WRITE_S)
        except asyncio.TimeoutError:
            log.warning("The database is too slow for the sample of the last predictions.")

    async def write(self) -> None:
        """Write what was taken; what the database does not take is given up, so that memory stays bounded."""
        taken = self._taken
        self._taken, self._pass_over, self._weight = [], 0, 1.0
        if not taken:
            return
        try:
            await asyncio.to_thread(self._write, taken)
        except (PipelineError, SQLAlchemyError) as error:
            self._lost.inc(len(taken))
            if not self._is_failing:
                reason = str(error).partition("\n")[0]
                log.warning("Predictions are not sampled until the database takes them again: %s", reason)
            self._is_failing = True
        else:
            self._kept.inc(len(taken))
            self._is_failing = False

    def _write(self, taken: list[AnsweredText]) -> None:
        add_sample(self._storage.open(), taken, self._keeps_texts)
