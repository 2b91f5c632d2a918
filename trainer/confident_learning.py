"""Finds labels that are probably wrong: confident learning.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 70 (2021),
arXiv:1911.00068.

The method needs probabilities from a model that has not learnt the text itself. Of the validation texts and of the
held-out training texts, the training computes them anyway. Of the texts that the encoder has learnt, TF-IDF with
logistic regression gives them out of fold, within seconds. The encoder's own probabilities of these texts are not used:
it may have learnt wrong labels by heart, and they would need another pass over all texts.
"""

from collections.abc import Iterator

import numpy as np

from trainer.baseline import out_of_fold
from trainer.dataset import LabelledTexts
from trainer.evaluation import Scores, calibrated, fit_temperature, targets_of
from trainer.suspects import Suspect

Judged = tuple[LabelledTexts, Scores]
"""Texts that a model has not learnt, with its calibrated probabilities, [texts, labels]."""

_LEAST_PROBABILITY = 1e-12


def find_suspects(learnt: LabelledTexts, selection: Judged, val: Judged, labels: tuple[str, ...]) -> list[Suspect]:
    """Return the texts whose labels are probably wrong, the most suspicious first.

    `learnt` are the training texts that the encoder has learnt, at least `FOLDS` of each label. `selection` are the
    held-out training texts, and `val` the validation texts, with the encoder's probabilities.
    """
    parts = (learnt, selection[0], val[0])
    known = LabelledTexts(
        [text for part in parts for text in part.texts], [name for part in parts for name in part.labels]
    )
    logits = np.log(np.maximum(out_of_fold(known, labels)[: len(learnt.texts)], _LEAST_PROBABILITY))
    # Calibrated, these probabilities can be compared with the encoder's.
    temperature = fit_temperature(logits, targets_of(learnt.labels, labels))
    found = [
        *_off_diagonal("training", learnt, calibrated(logits, temperature), labels),
        *_off_diagonal("training", *selection, labels),
        *_off_diagonal("validation", *val, labels),
    ]
    return sorted(found, key=lambda suspect: suspect.label_score - suspect.suggested_score)


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
