"""Limits accepted work to what the model completes in the allowed time, at its measured rate."""

import asyncio
import math

from gateway.http.problems import ModelTimeoutError, OverloadedError

LONGEST_TEXT = 2_500
"""Maximum counted characters of a text: about as many as the model reads (512 tokens). Longer texts are cut before
tokenization (`serving.model_repo.texts.readable`), and cost a few percent more."""
TEXT_WORK = 10
"""Work of a text besides its characters, for its special tokens and its place in a row."""
SHARE = 0.5
"""Share of a request's time in which all work accepted before, and its own, must be done for it to be accepted. The
rest is a reserve for the unforeseen, such as other load on the machine."""
FIRST_RATE = 15_000.0
"""Assumed work per second until it is measured: that of a BERT-base model on two cores."""
WINDOW_S = 1.0
"""Length of one measurement of the rate."""
_CERTAINLY = 2.0
"""Work that takes this many times the time left, at the measured rate, cannot be done in time."""
RECENT_S = 5.0
"""Seconds after a caller's last request in which other callers must leave room for its next one."""


def work_of(text: str) -> int:
    """Return the work of a text, in characters.

    Counting texts is too coarse, because one may be a word and the next a chapter: a model handles a twentieth as many
    long texts per second. Tokens would be exact, but only the model's own tokenizer can count them.
    """
    return work_of_length(len(text))


def work_of_length(characters: int) -> int:
    """Return the work of a text with this many characters."""
    return min(characters, LONGEST_TEXT) + TEXT_WORK


class Backlog:
    """Accepted, unfinished work of one kind of requests. Use it within one event loop.

    The rate is measured while there is work. While requests are refused, the measured rate is the model's maximum;
    otherwise the model can do at least as much. So a limit that is far too low is corrected after a second of full
    use, on a machine of any speed. A limit that has become too high, due to other load, is corrected in the same way.

    A lone caller may fill the backlog. While others send requests too, a caller's unfinished work may not exceed the
    room left: one caller gets half of the limit, two get a third each, and a new caller always finds room.
    """

    def __init__(self, longest_wait_s: float) -> None:
        """Accept only work that will be done within `longest_wait_s`, even if a request would wait longer."""
        self.longest_wait_s = longest_wait_s
        self.rate = FIRST_RATE
        """Estimated work that the model completes per second."""
        self.work = 0
        """Accepted, unfinished work."""
        self._work_of: dict[str, int] = {}
        """Accepted, unfinished work by caller."""
        self._seen: dict[str, float] = {}
        """Time of the last request of each of the two latest callers; the latest caller comes last."""
        self._is_measured = False
        # The current measurement window:
        self._started = 0.0
        self._done = 0
        self._least = 0
        self._full_at = math.inf
        """The lowest work at which a request was refused."""

    @property
    def wait_s(self) -> float:
        """Seconds until all accepted work will be done."""
        return self.work / self.rate

    def is_full(self, time_left_s: float, caller: str) -> bool:
        """Return whether a caller's request with `time_left_s` left is refused, however small it is."""
        self._see(caller)
        if not self.work or self._room(time_left_s, caller) > 0:
            return False
        # A refusal because of a client's very short timeout says nothing about the model's rate.
        if time_left_s >= WINDOW_S and self.work >= self.rate * self._longest_wait(time_left_s):
            self._full_at = min(self._full_at, self.work)
        return True

    def enter(self, work: int, time_left_s: float, caller: str) -> None:
        """Accept work to be done within `time_left_s`; `leave` must be called for all of it.

        With an empty backlog, a request of any size is accepted: otherwise a very large one would never be.

        Raises:
            ModelTimeoutError: no time is left, or the work cannot be done in time at the measured rate.
            OverloadedError: the work could be done in time, but too much was accepted before.
        """
        is_hopeless = self._is_measured and work > _CERTAINLY * self.rate * time_left_s
        # With an empty backlog it is tried: the rate may be old, and nothing else would show that the model is faster.
        if time_left_s <= 0 or (self.work and is_hopeless):
            raise ModelTimeoutError("The time that the request allows is too short for its texts.")
        if not self.work:
            self._see(caller)
            self._start_window(asyncio.get_running_loop().time())
        elif self.is_full(time_left_s, caller) or work > self._room(time_left_s, caller):
            raise OverloadedError(self.wait_s)
        self.work += work
        self._work_of[caller] = self._work_of.get(caller, 0) + work

    def leave(self, work: int, caller: str, done: bool) -> None:
        """Remove accepted work of a caller. `done` means that the model did it; otherwise it was given up."""
        self.work -= work
        self._work_of[caller] = self._work_of.get(caller, 0) - work
        if self._work_of[caller] <= 0:
            del self._work_of[caller]
        if done:
            self._done += work
            self._least = min(self._least, self.work)
            now = asyncio.get_running_loop().time()
            if now - self._started >= WINDOW_S:
                self._learn(self._done / (now - self._started))
                self._start_window(now)

    def _room(self, time_left_s: float, caller: str) -> float:
        """Return the work that a caller may still add."""
        free = self.rate * self._longest_wait(time_left_s) - self.work
        now = asyncio.get_running_loop().time()
        is_alone = not any(other != caller and now - seen < RECENT_S for other, seen in self._seen.items())
        return free if is_alone else free - self._work_of.get(caller, 0)

    def _see(self, caller: str) -> None:
        self._seen.pop(caller, None)
        self._seen[caller] = asyncio.get_running_loop().time()
        if len(self._seen) > 2:
            del self._seen[next(iter(self._seen))]

    def _longest_wait(self, time_left_s: float) -> float:
        return min(self.longest_wait_s, SHARE * time_left_s)

    def _learn(self, rate: float) -> None:
        # The backlog stayed full, apart from work done since the last request was accepted.
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
