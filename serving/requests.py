"""What is asked of the engine: requests whose texts wait to be run, and the answers to them."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Encoding

from serving.protocol import Phases


class DroppedError(Exception):
    """A request was not computed, because its time has passed, or because nobody waits for it any more."""


class TextError(Exception):
    """The tokenizer or the graph fails on a text, while others can be classified."""


@dataclass(frozen=True)
class Probabilities:
    """The engine's answer for a list of texts, in their order."""

    values: npt.NDArray[np.float32]
    """[texts, labels], calibrated; each row sums to 1."""
    truncated: npt.NDArray[np.bool_]
    """[texts]; whether the text was longer than the model reads, and was cut."""
    phases: Phases
    """Where the time went."""


class Request:
    """Texts that are answered together."""

    def __init__(
        self,
        encodings: Sequence[Encoding],
        labels: int,
        arrived: float,
        timeout_s: float,
        is_wanted: Callable[[], bool],
    ) -> None:
        """Of tokenized texts; it came when the performance counter said `arrived`, and is worth `timeout_s` seconds."""
        self.looked_at = time.monotonic()
        self.deadline = self.looked_at + timeout_s
        self.is_wanted = is_wanted
        self.ended = False
        """Answered, failed or dropped, so that nothing else becomes of it; changed under the engine's lock."""
        self.token_ids = [encoding.ids for encoding in encodings]
        self.truncated = np.fromiter((bool(encoding.overflowing) for encoding in encodings), dtype=bool)
        self.values = np.empty((len(encodings), labels), dtype=np.float32)
        self.texts_left = len(encodings)
        self.answer: Future[Probabilities] = Future()
        self.arrived = arrived
        self.queued = time.perf_counter()
        self.begun: float | None = None
        """When the first of the texts was taken to be run."""

    def phases(self) -> Phases:
        """Where the time went, now that all is run."""
        begun = self.queued if self.begun is None else self.begun
        return Phases(self.queued - self.arrived, begun - self.queued, time.perf_counter() - begun)


class WaitingText(NamedTuple):
    """A text that waits; sorted, the most urgent is first."""

    due: float
    number: int
    """Of all texts so far, so that no two compare equal and equally urgent ones keep their order."""
    tokens: int
    request: Request
    position: int
    """In its request."""
