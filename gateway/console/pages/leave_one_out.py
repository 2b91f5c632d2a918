"""Finds the words that influenced a prediction, by classifying the text again without each of them.

The method is occlusion: "representation erasure" in Li, Monroe and Jurafsky, "Understanding Neural Networks through
Representation Erasure" (2016). Its figures are exact, but it misses words that matter only together.

The variants of a text cost the model at most `MOST_WORK`, however long the text is. Only words that the model reads are
left out; if there are many, several are left out together.
"""

import re
from dataclasses import dataclass, replace
from itertools import pairwise

from gateway.load_control.backlog import LONGEST_TEXT, work_of
from serving.model_repo.protocol import MAX_BATCH_SIZE
from serving.model_repo.texts import text_fault

MOST_PIECES = MAX_BATCH_SIZE - 1
"""Maximum pieces of a text. If it has more words, neighbours are left out together."""
MOST_WORK = 16 * LONGEST_TEXT
"""Maximum characters of all variants of a text together; the longest texts have 16 variants."""
EXPLAINED = LONGEST_TEXT
"""Characters at the beginning of a text whose words are left out; about as many as the model reads."""
_STRENGTHS = (0.02, 0.10, 0.25)
"""Minimum changes of the probability for a weak, clear and strong influence."""
_NOTICEABLE = 0.0005
"""Smallest change that is not 0.0 when it is shown in percentage points with one decimal."""


@dataclass(frozen=True)
class Piece:
    """One or more neighbouring words, and the blanks (`gap`) before the next piece."""

    text: str
    gap: str
    variant: str | None
    """The text without this piece; None if the rest cannot be classified, or the model does not read the piece."""


@dataclass(frozen=True)
class MovedBy:
    """The influence of a piece on the prediction."""

    text: str
    gap: str
    change: float | None
    """How much the piece raised the probability of the predicted label; negative if it lowered it."""
    strength: int
    """The influence from 0 (almost none) to 3 (strong). If none is weak or more, the largest changes count as weak."""


def pieces(text: str) -> list[Piece]:
    """Split a text into at most `MOST_PIECES` pieces; joined, they are the text without leading blanks.

    The end that the model does not read is one more piece, without a variant.
    """
    # Twice `EXPLAINED`, so that variants still fill what the model reads.
    whole, text = text, text[: 2 * EXPLAINED]
    words = list(re.finditer(r"\S+", text[:EXPLAINED]))
    count = min(len(words), MOST_PIECES, max(1, MOST_WORK // work_of(text)))
    rest = whole[words[-1].end() :] if words else ""
    words_end = len(whole) - len(rest) if rest.strip() else len(text)
    bounds = [len(words) * index // count for index in range(count + 1)] if count else []
    found = []
    for first, after in pairwise(bounds):
        start, end = words[first].start(), words[after - 1].end()
        next_start = words[after].start() if after < len(words) else words_end
        variant = text[:start] + text[next_start:]
        found.append(Piece(text[start:end], text[end:next_start], None if text_fault(variant) else variant))
    if rest.strip():
        found.append(Piece(rest, "", None))
    elif found:
        found[-1] = replace(found[-1], gap=rest)
    return found


def moved(found: list[Piece], whole: float, without: list[float]) -> list[MovedBy]:
    """Return the influence of each piece, from the label's probability for the whole text and for each variant."""
    left = iter(without)
    changes = [None if piece.variant is None else whole - next(left) for piece in found]
    largest = max((abs(change) for change in changes if change is not None), default=0.0)
    weak = _STRENGTHS[0] if largest >= _STRENGTHS[0] else max(largest / 2, _NOTICEABLE)
    least = (weak, *_STRENGTHS[1:])
    return [
        MovedBy(piece.text, piece.gap, change, sum(abs(change or 0) >= bound for bound in least))
        for piece, change in zip(found, changes, strict=True)
    ]


def are_small(words: list[MovedBy]) -> bool:
    """Return whether no piece has even a weak influence by itself."""
    return all(abs(word.change or 0) < _STRENGTHS[0] for word in words)
