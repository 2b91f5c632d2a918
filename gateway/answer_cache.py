"""Keeps the answers of the version that is deployed, the most recently asked texts first, within a bound of memory."""

import sys
from collections import OrderedDict

from gateway.inference import Prediction

MAX_BYTES = 64 * 1024 * 1024
"""Room for about 130,000 review sentences."""

MAX_CHARACTERS = 2_000
"""Characters of the longest text that is kept. A longer one is hardly ever sent twice, and would take the room of
dozens of short ones."""

_ENTRY_BYTES = 304
"""Memory of an entry besides its text and its probabilities: the prediction, its score, the dictionary's slot and link.
On CPython 3.10 to 3.13 it is 180 to 280, as the dictionary is full or has just grown."""


class AnswerCache:
    """The answers of one version, by text: a version that takes over starts with none.

    So no answer can be taken for another version's, and `version` need not be part of each key. Where the memory does
    not suffice, the texts that were not asked for the longest time make room.
    """

    def __init__(self, max_bytes: int) -> None:
        """Hold at most `max_bytes`, counted as CPython allocates them."""
        self.max_bytes = max_bytes
        self.bytes = 0
        """Memory of what is kept."""
        self._answers: OrderedDict[str, Prediction] = OrderedDict()
        self._version: int | None = None
        self.hits = 0
        """Texts whose answer was there."""
        self.misses = 0
        """Texts whose answer was not there, or is never kept."""

    @property
    def texts(self) -> int:
        """Texts whose answers are kept."""
        return len(self._answers)

    def turn_to(self, version: int) -> None:
        """Keep answers of `version` from now on; those of another are dropped."""
        if version != self._version:
            self._version = version
            self._answers.clear()
            self.bytes = 0

    def get(self, text: str) -> Prediction | None:
        """Return the answer for `text`, if it is known."""
        # Not looked up, for hashing a long text takes longer than all the rest.
        prediction = self._answers.get(text) if len(text) <= MAX_CHARACTERS else None
        self.count(is_hit=prediction is not None)
        if prediction is not None:
            self._answers.move_to_end(text)
        return prediction

    def count(self, *, is_hit: bool) -> None:
        """Count a text that was asked for, here or of another version beside this one."""
        if is_hit:
            self.hits += 1
        else:
            self.misses += 1

    def __contains__(self, text: str) -> bool:
        """Whether the answer for `text` is known; to ask does not count as its use."""
        return text in self._answers

    def put(self, text: str, prediction: Prediction) -> None:
        """Keep an answer, unless another version gave it (one that was asked before the change) or it is too long."""
        if prediction.version != self._version or len(text) > MAX_CHARACTERS or text in self._answers:
            return
        self._answers[text] = prediction
        self.bytes += _size(text, prediction)
        while self.bytes > self.max_bytes:
            self.bytes -= _size(*self._answers.popitem(last=False))


def _size(text: str, prediction: Prediction) -> int:
    return sys.getsizeof(text) + sys.getsizeof(prediction.probabilities) + _ENTRY_BYTES
