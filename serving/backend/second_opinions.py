"""Asks the other stage for its prediction of a sample of the texts, for the audit of the first stage.

Such a text waits as a request without a client, which others overtake. Nobody's answer waits for it.
"""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np
import numpy.typing as npt

from serving.backend.audit import Audit
from serving.backend.requests import Probabilities, Request, WaitingText
from serving.backend.stage import Stage

DUE_S = 5.0
"""Seconds after which an audited text is due. Until then, texts of requests go first."""

FloatArray = npt.NDArray[np.float32]


class SecondOpinions:
    """Draws the sample from what the stages decide, and gives the audit both predictions."""

    def __init__(
        self, audit: Audit, first: Stage, full: Stage, changed: threading.Condition, numbers: Iterator[int]
    ) -> None:
        """Ask `first` or `full`, whose queues `changed` protects, about texts; `numbers` are those of waiting texts."""
        self.audit = audit
        self._first = first
        self._full = full
        self._changed = changed
        self._numbers = numbers
        self._from = 0
        """Number of the first text since the first stage was turned off or on; older ones are not compared."""

    def ask(self, stage: Stage, decided: Sequence[tuple[WaitingText, FloatArray]], undecided: int) -> None:
        """Queue a sample of the texts that `stage` has decided, with their probabilities, for the other stage.

        While the first stage is on, the sample is of the texts that it has read. Those that it left to the full model
        need no comparison: their label is the full model's.
        """
        audit = self.audit
        with self._changed:
            if (stage is self._first) != audit.is_on:
                return
            if audit.is_on:
                for _ in range(undecided):
                    if audit.chooses():
                        audit.add(0.0, differs=False)
            chosen = [
                (text, probabilities)
                for text, probabilities in decided
                if not text.request.is_audit and text.number >= self._from and audit.chooses()
            ]
            audit.pending += len(chosen)
        other = self._full if stage is self._first else self._first
        for text, probabilities in chosen:
            self._ask(other, text, probabilities)

    def _ask(self, stage: Stage, text: WaitingText, probabilities: FloatArray) -> None:
        request = Request([text.request.texts[text.position]], len(probabilities), math.inf, lambda: True, is_bulk=True)
        request.is_audit = True
        request.answer.add_done_callback(partial(self._compare, stage, text.number, probabilities))
        [encoding] = stage.encode(request.texts)
        if isinstance(encoding, BaseException):
            request.answer.set_exception(encoding)
            return
        request.queue([encoding])
        due = time.monotonic() + DUE_S
        with self._changed:
            stage.insert([WaitingText(due, next(self._numbers), len(encoding.ids), request, 0)])
            self._changed.notify_all()

    def _compare(self, stage: Stage, number: int, other: FloatArray, answer: "Future[Probabilities]") -> None:
        """Give the audit a text's predictions by both stages; it may turn the first one off or on."""
        with self._changed:
            self.audit.pending -= 1
            if answer.exception() is not None or number < self._from:
                return
            own = answer.result().values[0]
            was_on = self.audit.is_on
            confidence = float((own if stage is self._first else other).max())
            self.audit.add(confidence, differs=bool(own.argmax() != other.argmax()))
            if self.audit.is_on != was_on:
                self._first.threshold = self.audit.threshold
                self._from = next(self._numbers)
