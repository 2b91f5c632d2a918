"""The engine's requests, their waiting texts and their results."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from serving.model_repo.protocol import NOBODY_WAITS, TIME_HAS_PASSED, Phases
from serving.model_repo.texts import Readable


class DroppedError(Exception):
    """A request was dropped: its deadline passed, or its client no longer waits."""


class TextError(Exception):
    """The tokenizer or the graph failed on a text, although other texts can be classified."""


@dataclass(frozen=True)
class Probabilities:
    """The engine's result for a list of texts, in the same order."""

    values: npt.NDArray[np.float32]
    """[texts, labels], calibrated; each row sums to 1."""
    truncated: npt.NDArray[np.bool_]
    """[texts]; True if the text was longer than the model reads, and was truncated."""
    phases: Phases
    """Durations of the request's phases."""


class Request:
    """Texts whose results are returned together."""

    def __init__(
        self, texts: Sequence[Readable], labels: int, timeout_s: float, is_wanted: Callable[[], bool], is_bulk: bool
    ) -> None:
        """Record `texts` as arriving now, for a model with `labels` labels; the deadline is in `timeout_s` seconds."""
        self.arrived = time.perf_counter()
        self.looked_at = time.monotonic()
        self.deadline = self.looked_at + timeout_s
        self.is_wanted = is_wanted
        self.is_bulk = is_bulk
        """True if the request is part of a large job, so that short requests go first."""
        self.is_short = False
        """True if the request fits into one row and is not bulk; set after tokenization."""
        self.is_audit = False
        """True if no client waits: the result is compared with what the other stage predicted."""
        self.ended = False
        """True once the request is complete, failed or dropped; changed under the engine's lock."""
        self.texts = texts
        self.token_ids: list[list[int]] = []
        self.truncated = np.empty(0, dtype=bool)
        self.values = np.empty((len(texts), labels), dtype=np.float32)
        self.texts_left = len(texts)
        self.answer: Future[Probabilities] = Future()
        self.answer.set_running_or_notify_cancel()  # so that nobody can cancel it, and setting its result never fails
        self.queued = self.arrived
        self.begun: float | None = None
        """Time at which the first text was taken for a run."""

    def queue(self, encodings: Sequence[Encoding]) -> None:
        """Store the tokenized texts; the time in the queue starts now."""
        self.token_ids = [encoding.ids for encoding in encodings]
        cut = (text.is_cut or bool(one.overflowing) for text, one in zip(self.texts, encodings, strict=True))
        self.truncated = np.fromiter(cut, dtype=bool)
        self.queued = time.perf_counter()

    def useless(self, look_s: float) -> Exception | None:
        """Return an error if the request should be dropped: its deadline passed, or its client no longer waits.

        Call `is_wanted` only if the last check is at least `look_s` seconds ago. If it raises, its error ends this
        request, and no engine thread.
        """
        now = time.monotonic()
        if self.deadline <= now:
            return DroppedError(TIME_HAS_PASSED)
        if now - self.looked_at >= look_s:
            self.looked_at = now
            try:
                is_wanted = self.is_wanted()
            except Exception as error:
                return error
            if not is_wanted:
                return DroppedError(NOBODY_WAITS)
        return None

    def phases(self) -> Phases:
        """Return the durations of the phases; call this when the last text has been run."""
        begun = self.queued if self.begun is None else self.begun
        return Phases(self.queued - self.arrived, begun - self.queued, time.perf_counter() - begun)


class WaitingText(NamedTuple):
    """A text in the queue; its sort order puts the most urgent text first."""

    due: float
    number: int
    """Sequence number over all texts: no two texts compare equal, and equally urgent texts keep their order."""
    tokens: int
    request: Request
    position: int
    """Index of the text in its request."""
