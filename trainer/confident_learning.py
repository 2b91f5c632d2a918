"""Finds labels that are probably wrong: confident learning.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70 (2021),
arXiv:1911.00068.

The method needs probabilities from a model that has not learnt the text itself. Of the validation texts and of the
held-out training texts, the training computes them anyway. Of the texts that the encoder has learnt, TF-IDF with
logistic regression gives them out of fold, within seconds. The encoder's own probabilities of these texts are not used:
they need another pass over all texts, and after many epochs it has learnt wrong labels by heart. After one epoch they
are better (48 of the first 50 texts of the sample data were wrong, instead of 43).
"""

import random
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest

import numpy as np

from trainer.baseline import FOLDS, out_of_fold
from trainer.dataset import LabelledTexts
from trainer.evaluation import Scores, targets_of
from trainer.suspects import Suspect

MOST_LEARNT = 50_000
"""Maximum number of learnt texts that are examined: the probabilities of all of them are in memory at once."""
_SEED = 0

Judged = tuple[LabelledTexts, Scores]
"""Texts that a model has not learnt, with its calibrated probabilities, [texts, labels]."""


def find_suspects(learnt: LabelledTexts, selection: Judged, val: Judged, labels: tuple[str, ...]) -> list[Suspect]:
    """Return the texts whose labels are probably wrong, the most suspicious first.

    `learnt` are the training texts that the encoder has learnt, at least `FOLDS` of each label. `selection` are the
    held-out training texts, and `val` the validation texts, with the encoder's probabilities. Of more than
    `MOST_LEARNT` learnt texts, a random sample of this size is examined, always the same.

    The lists of the two models alternate, because their probabilities cannot be compared: on sample data with 5 % wrong
    labels, the first 50 texts by calibrated probabilities were all the baseline's, and 70 % of them were wrong; of 50
    alternating ones, 86 % were.
    """
    learnt = _sample(learnt)
    parts = (learnt, selection[0], _sample(val[0]))
    known = LabelledTexts(
        [text for part in parts for text in part.texts], [name for part in parts for name in part.labels]
    )
    by_baseline = _off_diagonal("training", learnt, out_of_fold(known, labels)[: len(learnt.texts)], labels)
    by_encoder = (*_off_diagonal("training", *selection, labels), *_off_diagonal("validation", *val, labels))
    lists = (sorted(found, key=_margin) for found in (by_encoder, by_baseline))
    return [suspect for pair in zip_longest(*lists) for suspect in pair if suspect is not None]


def _sample(texts: LabelledTexts) -> LabelledTexts:
    """Return at most `MOST_LEARNT` texts at random, with at least `FOLDS` of each label that has as many."""
    if len(texts.texts) <= MOST_LEARNT:
        return texts
    seen: Counter[str] = Counter()
    first: list[int] = []
    others: list[int] = []
    for place in random.Random(_SEED).sample(range(len(texts.texts)), len(texts.texts)):
        label = texts.labels[place]
        (first if seen[label] < FOLDS else others).append(place)
        seen[label] += 1
    return texts.at(sorted((first + others)[:MOST_LEARNT]))


def _margin(suspect: Suspect) -> float:
    return suspect.label_score - suspect.suggested_score


def _off_diagonal(data: str, texts: LabelledTexts, probabilities: Scores, labels: tuple[str, ...]) -> Iterator[Suspect]:
    """Yield the texts that the confident joint (section 3.1 of the paper) counts under another label than their own.

    A label is likely for a text if its probability reaches the mean probability of the label over the texts that have
    it. A text is counted under its most probable likely label, and not at all if no label is likely.
    """
    given = targets_of(texts.labels, labels)
    thresholds = np.array(
        [probabilities[given == label, label].mean() if (given == label).any() else 2.0 for label in range(len(labels))]
    )
    likely = np.where(probabilities >= thresholds, probabilities, -1.0)
    counted = likely.argmax(axis=1)
    for place in np.flatnonzero((likely.max(axis=1) >= 0) & (counted != given)):
        own, other = given[place], counted[place]
        scores = probabilities[place]
        yield Suspect(data, texts.texts[place], labels[own], labels[other], float(scores[own]), float(scores[other]))
