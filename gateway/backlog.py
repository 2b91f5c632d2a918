"""Bounds the work that is accepted by what the model gets done in the time allowed, as it is measured."""

import asyncio
import math

from gateway.problems import ModelTimeoutError, OverloadedError

LONGEST_TEXT = 2_500
"""Characters of a text that count: about as many as the model reads (512 tokens); what is over is cut."""
TEXT_WORK = 10
"""What a text counts besides its characters, for its special tokens and its place in a row."""
SHARE = 0.5
"""Of the time that a request is given: it is accepted if what was accepted before it, and itself, will be done by
then. The rest is for what cannot be foreseen, such as other work of the machine."""
FIRST_RATE = 15_000.0
"""Work a second, until it is measured: that of a model of BERT-base size on two cores."""
WINDOW_S = 1.0
"""For as long the rate is measured."""
_CERTAINLY = 2.0
"""What would take this times the time that is left, at the measured rate, cannot come in time."""


def work_of(text: str) -> int:
    """How much work a text is, in characters.

    Not in texts, because one may be a word and the next a chapter: of long texts a model answers a twentieth as many
    a second. Tokens would be exact, but only the model's own tokenizer can count them.
    """
    return min(len(text), LONGEST_TEXT) + TEXT_WORK


class Backlog:
    """Work of one kind of requests that was accepted and is not done; use it within one event loop.

    What is done in a second is measured while there is work. While requests have to be refused, that is all the model
    can do; else it can do at least as much. So a bound that is far too low is left after a second of full use, however
    fast the machine is, and one that has become too high, as something else takes its time, just so.
    """

    def __init__(self, longest_wait_s: float) -> None:
        """Accept what will be done in `longest_wait_s` at most, however much longer a request would wait."""
        self.longest_wait_s = longest_wait_s
        self.rate = FIRST_RATE
        """Work that the model gets done in a second, as far as is known."""
        self.work = 0
        """What was accepted and is not done."""
        self._is_measured = False
        # The window in which it is measured:
        self._started = 0.0
        self._done = 0
        self._least = 0
        self._full_at = math.inf
        """The least work at which a request was refused."""

    @property
    def wait_s(self) -> float:
        """Seconds until what was accepted by now will be done."""
        return self.work / self.rate

    def is_full(self, time_left_s: float) -> bool:
        """Whether a request that must be answered in so many seconds is refused, however small it is."""
        if not self.work or self.wait_s < self._longest_wait(time_left_s):
            return False
        self._full_at = min(self._full_at, self.work)
        return True

    def enter(self, work: int, time_left_s: float) -> None:
        """Accept work, to be done in so many seconds; `leave` must be called for all of it.

        A request that is alone is accepted however large it is, or it never would be.

        Raises:
            ModelTimeoutError: it cannot be done by then, as fast as the model is while there is other work.
            OverloadedError: it could be, but too much was accepted before.
        """
        is_hopeless = self._is_measured and work > _CERTAINLY * self.rate * time_left_s
        # What was measured may be long past, and nothing else would show that the model is faster now.
        if time_left_s <= 0 or (self.work and is_hopeless):
            raise ModelTimeoutError("The time that the request allows is too short for its texts.")
        if not self.work:
            self._start_window(asyncio.get_running_loop().time())
        elif self.is_full(time_left_s) or self.work + work > self.rate * self._longest_wait(time_left_s):
            raise OverloadedError(self.wait_s)
        self.work += work

    def leave(self, work: int, done: bool) -> None:
        """Tell that accepted work is over; `done` if the model did it, and it was not given up."""
        self.work -= work
        if done:
            self._done += work
            self._least = min(self._least, self.work)
            now = asyncio.get_running_loop().time()
            if now - self._started >= WINDOW_S:
                self._learn(self._done / (now - self._started))
                self._start_window(now)

    def _longest_wait(self, time_left_s: float) -> float:
        return min(self.longest_wait_s, SHARE * time_left_s)

    def _learn(self, rate: float) -> None:
        # Full all the time, but for what was done since the last request was accepted.
        was_full = self._least >= 0.5 * self._full_at
        if was_full and self._is_measured:
            self.rate = (self.rate + rate) / 2
        elif was_full or rate > self.rate:
            self.rate = rate
        self._is_measured = self._is_measured or was_full

    def _start_window(self, now: float) -> None:
        self._started = now
        self._done = 0
        self._least = self.work
        self._full_at = math.inf
