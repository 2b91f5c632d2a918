"""Whether what is asked, answered and told as feedback is still like what the model learnt from.

Of the texts, by a classifier that is to tell live texts from known ones: D. Lopez-Paz and M. Oquab, "Revisiting
Classifier Two-Sample Tests", ICLR 2017. How well it does, on texts that it has not learnt from, is the area under its
ROC curve: 0.5 where there is nothing to tell, 1 where each text gives itself away. Its interval is that of E. DeLong
et al., "Comparing the Areas under Two or More Correlated Receiver Operating Characteristic Curves", Biometrics 44(3),
1988, by the ranks of X. Sun and W. Xu, "Fast Implementation of DeLong's Algorithm", IEEE Signal Processing Letters
21(11), 2014. It is linear in words, so that its weights show a person what has changed.

Of labels and lengths, by the chi-squared test and that of Kolmogorov and Smirnov, against the same model's answers to
the validation texts. Of errors on feedback, by the test of equal proportions between the newest texts and those before
(K. Nishida and K. Yamauchi, "Detecting Concept Drift Using Statistical Testing", Discovery Science 2007), in Fisher's
exact form, which suits few errors (D. de Lima Cabral and R. de Barros, "Concept drift detection based on Fisher's Exact
test", Information Sciences 442, 2018).

So scikit-learn and SciPy suffice, which are here anyway. Detectors for streams, as river has them, see one text after
the other and forget them; here all are in the database, and each split of them can be tested.

With many texts a difference is beyond chance long before it matters, so each alarm needs a least effect too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2_contingency, fisher_exact, ks_2samp, norm, rankdata
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from storage.tables import Figures

LEAST_AUC = 0.55
"""Which the lower end of the interval must be over: which of two texts is the live one is told a little more often
than by tossing a coin."""
LEAST_DISTANCE = 0.1
"""Of labels (total variation) and lengths (Kolmogorov and Smirnov): a tenth of the texts would have to be others."""
LEAST_RISE = 0.05
"""Of the share of wrong answers to feedback."""
CHANCE = 0.003
"""Of an alarm on labels, lengths or feedback, where nothing has changed."""
NEWEST_FEEDBACK = (50, 150, 450)
"""Texts that are held against those before."""
LEAST_OLDER_FEEDBACK = 50
WORDS_TOLD = 10
_COVERAGE = 0.95
_LEAST_TEXTS_OF_A_WORD = 5
"""Rarer words say little, and might be somebody's own."""
_FOLDS = 5
_SEED = 0


@dataclass(frozen=True)
class TextDrift:
    """How well live texts can be told from known ones."""

    auc: float
    low: float
    high: float
    live_words: list[str]
    """That give away a live text, the most telling first."""
    known_words: list[str]
    """That give away a known one."""

    @property
    def alarm(self) -> str:
        """What to say of it; empty where it is nothing."""
        if self.low <= LEAST_AUC:
            return ""
        told = f"live texts can be told from known ones (ROC AUC {self.auc:.3f}, {self.low:.3f} to {self.high:.3f})"
        return f"{told}: by {', '.join(self.live_words)} in live ones, {', '.join(self.known_words)} in known ones"

    def figures(self) -> Figures:
        """For the result of a check."""
        words = {"live_words": self.live_words, "known_words": self.known_words}
        return {"auc": [self.auc, self.low, self.high], **words, "alarm": self.alarm}


@dataclass(frozen=True)
class Shift:
    """How far one property of the texts or answers has moved, and how likely that is by chance."""

    distance: float
    """0 to 1."""
    chance: float
    told: str
    """What has moved, in words."""
    least: float = LEAST_DISTANCE
    """From which distance on it matters."""

    @property
    def alarm(self) -> str:
        """What to say of it; empty where it is nothing."""
        return self.told if self.chance < CHANCE and self.distance >= self.least else ""

    def figures(self) -> Figures:
        """For the result of a check."""
        return {"distance": self.distance, "chance": self.chance, "alarm": self.alarm}


def text_drift(known: Sequence[str], live: Sequence[str]) -> TextDrift | None:
    """Hold live texts against known ones; none where they are too few or have no words in common."""
    told = _words_of(known, live)
    if told is None:
        return None
    scores = cross_val_predict(_classifier(), told.features, told.is_live, cv=_folds(), method="decision_function")
    auc, low, high = area_under_curve(scores[told.is_live], scores[~told.is_live])
    weights = _classifier().fit(told.features, told.is_live).coef_[0]
    order = np.argsort(weights)
    live_words = [str(told.words[place]) for place in order[::-1][:WORDS_TOLD] if weights[place] > 0]
    known_words = [str(told.words[place]) for place in order[:WORDS_TOLD] if weights[place] < 0]
    return TextDrift(auc, low, high, live_words, known_words)


def live_likeness(known: Sequence[str], live: Sequence[str]) -> npt.NDArray[np.float64] | None:
    """The probability of each live text to be one, by the same classifier, which has not learnt from it [live texts].

    About a half where there is no drift; none where `text_drift` is none.
    """
    told = _words_of(known, live)
    if told is None:
        return None
    probabilities = cross_val_predict(_classifier(), told.features, told.is_live, cv=_folds(), method="predict_proba")
    likeness: npt.NDArray[np.float64] = probabilities[told.is_live, 1]
    return likeness


class _Words(NamedTuple):
    """What the classifier sees of live texts and, after them, known ones."""

    features: Any
    """Sparse, [texts, words]"""
    is_live: npt.NDArray[np.bool_]
    words: npt.NDArray[np.object_]


def _words_of(known: Sequence[str], live: Sequence[str]) -> _Words | None:
    if min(len(known), len(live)) < 2 * _FOLDS:
        return None
    vectorizer = TfidfVectorizer(min_df=_LEAST_TEXTS_OF_A_WORD, binary=True, sublinear_tf=True)
    try:
        features = vectorizer.fit_transform([*live, *known])
    except ValueError:  # no word is in enough texts
        return None
    return _Words(features, np.arange(features.shape[0]) < len(live), vectorizer.get_feature_names_out())


def _classifier() -> LogisticRegression:
    return LogisticRegression(solver="liblinear", class_weight="balanced", random_state=_SEED)


def _folds() -> StratifiedKFold:
    return StratifiedKFold(_FOLDS, shuffle=True, random_state=_SEED)


def area_under_curve(
    positive: npt.NDArray[np.floating], negative: npt.NDArray[np.floating]
) -> tuple[float, float, float]:
    """The area under the ROC curve of scores [positives] and [negatives], and the ends of its interval."""
    ranks = rankdata(np.concatenate([positive, negative]))
    above = (ranks[: len(positive)] - rankdata(positive)) / len(negative)
    below = 1 - (ranks[len(positive) :] - rankdata(negative)) / len(positive)
    auc = float(above.mean())
    deviation = (above.var(ddof=1) / len(positive) + below.var(ddof=1) / len(negative)) ** 0.5
    half = float(norm.ppf(0.5 + _COVERAGE / 2) * deviation)
    return auc, max(0.0, auc - half), min(1.0, auc + half)


def label_shift(known: Sequence[str], live: Sequence[str]) -> Shift:
    """Hold the labels that live texts get against those that known ones get."""
    labels = sorted({*known, *live})
    counts = np.array([[list(given).count(label) for label in labels] for given in (known, live)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    chance = float(chi2_contingency(counts).pvalue) if len(labels) > 1 else 1.0
    moved = int(np.abs(shares[1] - shares[0]).argmax())
    told = (
        f"{labels[moved]} is given to {shares[1][moved]:.1%} of live texts, and to {shares[0][moved]:.1%} of known ones"
    )
    return Shift(float(np.abs(shares[1] - shares[0]).sum() / 2), chance, told)


def length_shift(known: Sequence[int], live: Sequence[int]) -> Shift:
    """Hold the lengths of live texts, in words, against those of known ones."""
    found = ks_2samp(known, live, method="asymp")
    told = f"live texts have {np.median(live):.0f} words (median), and known ones {np.median(known):.0f}"
    return Shift(float(found.statistic), float(found.pvalue), told)


def feedback_shift(is_wrong: npt.NDArray[np.bool_]) -> Shift | None:
    """Hold the newest feedback against that before; `is_wrong` [texts], the oldest first, is whether the answer was.

    Of the numbers of newest texts that are tried, the one that tells most; none where there is too little feedback.
    """
    tried = [newest for newest in NEWEST_FEEDBACK if len(is_wrong) - newest >= LEAST_OLDER_FEEDBACK]
    found = []
    for newest in tried:
        before, after = is_wrong[:-newest], is_wrong[-newest:]
        table = [[after.sum(), len(after) - after.sum()], [before.sum(), len(before) - before.sum()]]
        chance = min(1.0, float(fisher_exact(table, alternative="greater").pvalue) * len(tried))
        rates = float(after.mean()), float(before.mean())
        told = f"{rates[0]:.1%} of the newest {newest} texts of feedback were answered wrong, and {rates[1]:.1%} before"
        found.append(Shift(max(0.0, rates[0] - rates[1]), chance, told, LEAST_RISE))
    return min(found, key=lambda shift: shift.chance, default=None)
