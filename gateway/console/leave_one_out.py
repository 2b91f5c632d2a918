"""Which words moved an answer: the text is asked again without each of them.

Occlusion, as Li, Monroe and Jurafsky call "representation erasure" in "Understanding Neural Networks through
Representation Erasure" (2016). It is exact about what it asks, and blind to words that matter only together.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

from serving.protocol import MAX_BATCH_SIZE
from serving.texts import text_fault

MOST_PIECES = MAX_BATCH_SIZE - 1
"""So that the text and all its variants fit into one call. Of a longer text, neighbours are left out together."""
_STRENGTHS = (0.02, 0.10, 0.25)
"""Change of the probability from which on a word moved the answer a little, clearly, much."""


@dataclass(frozen=True)
class Piece:
    """A word, or some that follow one another, and what is between it and the next."""

    text: str
    gap: str
    variant: str | None
    """The text without it; none where nothing is left that can be asked."""


@dataclass(frozen=True)
class MovedBy:
    """What a piece did to the answer."""

    text: str
    gap: str
    change: float | None
    """By so much it raised the probability of the label that was given; negative where it spoke against it."""

    @property
    def strength(self) -> int:
        """0, where it did next to nothing, to 3."""
        return 0 if self.change is None else sum(abs(self.change) >= least for least in _STRENGTHS)


def pieces(text: str) -> list[Piece]:
    """Take a text apart into at most `MOST_PIECES` pieces; together they are the text but for blanks at its start."""
    words = list(re.finditer(r"\S+", text))
    count = min(len(words), MOST_PIECES)
    bounds = [len(words) * index // count for index in range(count + 1)] if count else []
    found = []
    for first, after in pairwise(bounds):
        start, end = words[first].start(), words[after - 1].end()
        next_start = words[after].start() if after < len(words) else len(text)
        variant = text[:start] + text[next_start:]
        found.append(Piece(text[start:end], text[end:next_start], None if text_fault(variant) else variant))
    return found


def moved(found: list[Piece], whole: float, without: list[float]) -> list[MovedBy]:
    """What each piece did: `whole` is the label's probability for the text, `without` that of each variant there is."""
    left = iter(without)
    return [MovedBy(piece.text, piece.gap, None if piece.variant is None else whole - next(left)) for piece in found]
