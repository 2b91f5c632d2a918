"""Holds a tenth of the training file out for validation, if there is no validation file."""

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence

_SHARE = 10
"""One of so many texts is held out."""
_RANGE = 2**64


def held_out(texts: Mapping[str, int], labels: Sequence[int], least: int, remaining: int) -> set[str]:
    """Return the texts to hold out; `texts` has for each the index of its label in `labels`.

    A hash of the text decides, so a text stays on its side when rows are added, removed or moved. Texts that differ
    only in letter case or blanks are on one side. About a tenth of each label is held out: at least `least` texts,
    and so few that `remaining` stay for training. A label with fewer than `least` in its tenth gives those with the
    lowest hashes; as it grows, such texts may return to the training. Once it has `least` and `remaining` texts, no
    training text is held out later.
    """
    hashes = array("Q", map(_hash, texts))
    by_label: defaultdict[int, array[int]] = defaultdict(lambda: array("Q"))
    for index, hash_ in zip(texts.values(), hashes, strict=True):
        by_label[labels[index]].append(hash_)
    highest = {label: _highest(sorted(own), least, remaining) for label, own in by_label.items()}
    return {text for (text, index), hash_ in zip(texts.items(), hashes, strict=True) if hash_ <= highest[labels[index]]}


def _highest(hashes: list[int], least: int, remaining: int) -> int:
    """Return the highest hash that is held out; -1 if none is."""
    tenth = sum(hash_ < _RANGE // _SHARE for hash_ in hashes)
    number = min(max(tenth, least), len(hashes) - remaining)
    return hashes[number - 1] if number > 0 else -1


def _hash(text: str) -> int:
    form = " ".join(text.split()).casefold()
    return int.from_bytes(hashlib.sha256(form.encode()).digest()[:8], "big")
