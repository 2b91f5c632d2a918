"""In-memory LRU cache of the deployed version's predictions, with a memory limit."""

import sys
from collections import OrderedDict

from serving.client.prediction import Prediction

MAX_BYTES = 64 * 1024 * 1024
"""Enough for about 130,000 review sentences."""

MAX_CHARACTERS = 2_000
"""Maximum length of a cached text, in characters. Longer texts rarely repeat, and one would displace dozens of short
ones."""

_ENTRY_BYTES = 304
"""Bytes of an entry without its text and probabilities: the prediction, its score, the dictionary's slot and link.
On CPython 3.11 to 3.13 they are 180 to 280, depending on whether the dictionary is full or has just grown."""


class AnswerCache:
    """Predictions of one version by text; a version change clears the cache.

    So predictions of two versions never mix, and keys need no version. When memory runs out, the least recently used
    texts are evicted.
    """

    def __init__(self, max_bytes: int) -> None:
        """Limit the cache to `max_bytes`, counted as CPython allocates them."""
        self.max_bytes = max_bytes
        self.bytes = 0
        """Bytes in use."""
        self._answers: OrderedDict[str, Prediction] = OrderedDict()
        self._version: int | None = None
        self.hits = 0
        """Texts that were in the cache."""
        self.misses = 0
        """Texts that were not in the cache, including those too long to be cached."""

    @property
    def texts(self) -> int:
        """Number of cached texts."""
        return len(self._answers)

    def turn_to(self, version: int) -> None:
        """Cache predictions of `version` from now on; drop those of another version."""
        if version != self._version:
            self._version = version
            self._answers.clear()
            self.bytes = 0

    def get(self, text: str) -> Prediction | None:
        """Return the cached prediction for `text`, or None."""
        # A long text is not looked up: hashing it takes longer than all the rest.
        prediction = self._answers.get(text) if len(text) <= MAX_CHARACTERS else None
        self.count(is_hit=prediction is not None)
        if prediction is not None:
            self._answers.move_to_end(text)
        return prediction

    def count(self, *, is_hit: bool) -> None:
        """Count a lookup in this cache, or in that of the version on trial."""
        if is_hit:
            self.hits += 1
        else:
            self.misses += 1

    def __contains__(self, text: str) -> bool:
        """Return whether `text` is cached, without counting it as used."""
        return text in self._answers

    def put(self, text: str, prediction: Prediction) -> None:
        """Cache a prediction, unless its text is too long or another version made it (before a version change)."""
        if prediction.version != self._version or len(text) > MAX_CHARACTERS or text in self._answers:
            return
        self._answers[text] = prediction
        self.bytes += _size(text, prediction)
        while self.bytes > self.max_bytes:
            self.bytes -= _size(*self._answers.popitem(last=False))


def _size(text: str, prediction: Prediction) -> int:
    return sys.getsizeof(text) + sys.getsizeof(prediction.probabilities) + _ENTRY_BYTES
