"""Makes further texts from given ones, so that a model can imitate another one on more texts than there are.

They are parts of the texts, halves of two texts, and texts with some words left out. Similar to the sampling of n-grams
and masking of words in Tang et al. 2019, "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks"
(arXiv:1903.12136).
"""

from collections.abc import Sequence

import numpy as np

_LEFT_OUT = 0.2
"""Share of the words that are left out of a text, if its words are left out."""
_LEAST_PART = 1 / 3
"""Least share of a text's words that is a part of it."""


def changed_texts(texts: Sequence[str], number: int, seed: int) -> list[str]:
    """Return `number` texts made from those of `texts`, each of which is used about as often as any other.

    They depend on the texts and the seed alone. Without spaces, characters take the place of words.
    """
    random = np.random.default_rng(seed)
    changed: list[str] = []
    while len(changed) < number:
        for place in random.permutation(len(texts))[: number - len(changed)]:
            other = texts[int(random.integers(len(texts)))]
            changed.append(_changed(texts[place], other, random))
    return changed


def _changed(text: str, other: str, random: np.random.Generator) -> str:
    way = random.integers(3)
    space = " " if " " in text.strip() else ""
    words = text.split() if space else list(text)
    if way == 0:
        least = max(1, round(_LEAST_PART * len(words)))
        length = int(random.integers(least, max(least + 1, len(words))))
        start = int(random.integers(len(words) - length + 1))
        words = words[start : start + length]
    elif way == 1:
        others = other.split() if space else list(other)
        words = words[: -(-len(words) // 2)] + others[len(others) // 2 :]
    else:
        words = [word for word in words if random.random() >= _LEFT_OUT] or words
    return space.join(words)
