"""Holds out the training texts that choose the best state and the temperature; validation texts only evaluate."""

import hashlib
import math
from collections import defaultdict

from trainer.dataset import LabelledTexts

SHARE = 0.1
"""Share of each label's training texts that is held out."""
MOST_TEXTS = 2_000
"""Maximum number of texts held out, apart from rounding; more would only take time."""


def hold_out(train: LabelledTexts, most: int = MOST_TEXTS) -> tuple[LabelledTexts, LabelledTexts]:
    """Divide training texts into texts to learn from and at most `most` for the selection, both in their order.

    A hash of the text decides, so most of the selection stays the same while the data grow.
    """
    share = min(SHARE, most / max(1, len(train.texts)))
    by_label: dict[str, list[int]] = defaultdict(list)
    for position, label in enumerate(train.labels):
        by_label[label].append(position)
    chosen = {
        position
        for positions in by_label.values()
        for position in sorted(positions, key=lambda position: _hash(train.texts[position]))[
            : min(math.ceil(share * len(positions)), len(positions) - 1)
        ]
    }
    learnt, selection = (
        [position for position in range(len(train.texts)) if (position in chosen) is is_chosen]
        for is_chosen in (False, True)
    )
    return train.at(learnt), train.at(selection)


def _hash(text: str) -> bytes:
    # Salted, so that it is independent of other divisions by a hash of the text.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, salt=b"selection").digest()
