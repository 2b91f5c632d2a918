"""A baseline beside each model: TF-IDF with logistic regression. It needs seconds, and no encoder."""

import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from trainer.dataset import Dataset, LabelledTexts
from trainer.evaluation import Evaluation, Scores, evaluate, targets_of

MOST_TEXTS = 20_000
"""Maximum number of training texts; a random sample if there are more."""
FOLDS = 5
"""Parts of the texts of which each is predicted from the others."""
_FOLD_STRENGTH = 4.0
"""Inverse of the regularization's strength, out of fold. With scikit-learn's default of 1, fewer wrong labels are
found: 32 instead of 36 among the first 50 texts of the sample data, of which 5 % had a wrong label."""
MOST_CHARACTERS = 2_000
"""Maximum number of characters that are read of a text."""
_MOST_WEIGHTS = 2_000_000
_MOST_FEATURES = 50_000
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Scripts that are written without spaces between words: Thai, Lao, Burmese, Khmer, Japanese and Chinese."""
_TOKENS = rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]"
"""A character of such a script, a word of another one, or a sign such as an emoji."""

_SEED = 0


def evaluate_baseline(dataset: Dataset) -> Evaluation:
    """Train the baseline on the training texts, with balanced labels, and evaluate it on the validation texts."""
    labels = dataset.labels
    targets = targets_of(dataset.train.labels, labels)
    probabilities = _predicted(dataset.train.texts, targets, dataset.val.texts, len(labels))
    return evaluate(probabilities, targets_of(dataset.val.labels, labels), labels)


def second_opinion(learnt: LabelledTexts, texts: Sequence[str], labels: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Train the baseline on `learnt` and return its label of each text, [texts], as an index into `labels`.

    Texts of `learnt` with other labels are left out. At least two labels must occur among the others.
    """
    usable = learnt.at(place for place, label in enumerate(learnt.labels) if label in labels)
    probabilities = _predicted(usable.texts, targets_of(usable.labels, labels), texts, len(labels))
    predicted: npt.NDArray[np.int64] = probabilities.argmax(axis=1)
    return predicted


def out_of_fold(texts: LabelledTexts, labels: tuple[str, ...]) -> Scores:
    """Return probabilities, [texts, labels], each by a baseline trained on the other folds, without the text itself.

    Each label must have at least `FOLDS` texts.
    """
    targets = targets_of(texts.labels, labels)
    probabilities = np.zeros((len(targets), len(labels)))
    for learned, left_out in StratifiedKFold(FOLDS, shuffle=True, random_state=_SEED).split(targets, targets):
        known, unknown = ([texts.texts[place] for place in places] for places in (learned, left_out))
        probabilities[left_out] = _predicted(known, targets[learned], unknown, len(labels), _FOLD_STRENGTH)
    return probabilities


def _predicted(
    known: Sequence[str], targets: npt.NDArray[np.int64], unknown: Sequence[str], labels: int, strength: float = 1.0
) -> Scores:
    """Train on `known` texts, and return the probabilities of the `unknown` ones, [unknown texts, labels]."""
    places: Sequence[int] = range(len(known))
    if len(places) > MOST_TEXTS:
        places = sorted(random.Random(_SEED).sample(places, MOST_TEXTS))
    vectorizer = TfidfVectorizer(
        token_pattern=_TOKENS,
        ngram_range=(1, 2),
        sublinear_tf=True,
        max_features=min(_MOST_FEATURES, _MOST_WEIGHTS // labels),
        dtype=np.float32,
    )
    features = vectorizer.fit_transform(known[place][:MOST_CHARACTERS] for place in places)
    classifier = LogisticRegression(C=strength, class_weight="balanced", max_iter=300)
    classifier.fit(features, targets[places])
    # A rare label may be missing from the sample.
    probabilities = np.zeros((len(unknown), labels))
    probabilities[:, classifier.classes_] = classifier.predict_proba(
        vectorizer.transform(text[:MOST_CHARACTERS] for text in unknown)
    )
    return probabilities
