"""Tests whether live texts, predictions and feedback still resemble the data that the model was trained on.

Texts: a classifier learns to distinguish live texts from known ones. D. Lopez-Paz and M. Oquab, "Revisiting Classifier
Two-Sample Tests", ICLR 2017. It is measured by the area under its ROC curve, on texts that it was not trained on: 0.5
if the texts are alike, 1 if it recognises each one. The interval is that of E. DeLong et al., "Comparing the Areas
under Two or More Correlated Receiver Operating Characteristic Curves", Biometrics 44(3), 1988, by the ranks of X. Sun
and W. Xu, "Fast Implementation of DeLong's Algorithm", IEEE Signal Processing Letters 21(11), 2014. The classifier is
linear in words, so its weights show a person what has changed.

Labels and lengths: the chi-squared and the Kolmogorov-Smirnov test, against the validation texts and the same model's
predictions for them. Errors on feedback: the test of equal proportions between the newest texts and those before
(K. Nishida and K. Yamauchi, "Detecting Concept Drift Using Statistical Testing", Discovery Science 2007), in Fisher's
exact form, which suits few errors (D. de Lima Cabral and R. de Barros, "Concept drift detection based on Fisher's Exact
test", Information Sciences 442, 2018).

scikit-learn and SciPy suffice, and are dependencies anyway. Stream detectors, such as river's, see one text at a time
and forget it. Here all texts are in the database, and each split of them can be tested.

With many texts, a difference is significant long before it matters. So each alarm also needs a minimum effect.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2_contingency, fisher_exact, ks_2samp, norm, rankdata
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from storage.tables import Figures

LEAST_AUC = 0.55
"""The lower end of the interval must be above this for an alarm. At 0.55, the classifier finds the live one of two
texts a little more often than by tossing a coin."""
LEAST_DISTANCE = 0.1
"""Minimum distance of labels (total variation) or lengths (Kolmogorov-Smirnov) for an alarm: a tenth of the texts
would have to be different."""
LEAST_RISE = 0.05
"""Minimum rise of the share of wrong predictions on feedback for an alarm."""
CHANCE = 0.003
"""Probability of an alarm on labels, lengths or feedback if nothing has changed."""
NEWEST_FEEDBACK = (50, 150, 450)
"""Numbers of the newest texts of feedback that are compared with all texts before them."""
LEAST_OLDER_FEEDBACK = 50
WORDS_TOLD = 10
_COVERAGE = 0.95
_LEAST_TEXTS_OF_A_WORD = 5
"""Minimum number of texts with a word. Rarer words say little, and might be personal."""
_FOLDS = 5
_SEED = 0


@dataclass(frozen=True)
class TextDrift:
    """How well live texts can be distinguished from known ones."""

    auc: float
    low: float
    high: float
    live_words: list[str]
    """Words that are typical of live texts, the most typical first."""
    known_words: list[str]
    """Words that are typical of known texts, the most typical first."""

    @property
    def alarm(self) -> str:
        """The message of the alarm; empty if there is no alarm."""
        if self.low <= LEAST_AUC:
            return ""
        auc = f"live texts differ from known ones (ROC AUC {self.auc:.3f}, {self.low:.3f} to {self.high:.3f})"
        live, known = ", ".join(self.live_words), ", ".join(self.known_words)
        return f"{auc}; typical of live texts: {live}; typical of known texts: {known}"

    def figures(self) -> Figures:
        """Return the figures for the result of a check."""
        words = {"live_words": self.live_words, "known_words": self.known_words}
        return {"auc": [self.auc, self.low, self.high], **words, "alarm": self.alarm}


@dataclass(frozen=True)
class Shift:
    """How far one property of the texts or predictions has moved, and how likely that is by chance."""

    distance: float
    """0 to 1."""
    chance: float
    message: str
    """The shift in words."""
    least: float = LEAST_DISTANCE
    """Minimum distance for an alarm."""

    @property
    def alarm(self) -> str:
        """The message of the alarm; empty if there is no alarm."""
        return self.message if self.chance < CHANCE and self.distance >= self.least else ""

    def figures(self) -> Figures:
        """Return the figures for the result of a check."""
        return {"distance": self.distance, "chance": self.chance, "alarm": self.alarm}


def text_drift(known: Sequence[str], live: Sequence[str]) -> TextDrift | None:
    """Compare live texts with known ones; None if there are too few texts, or no word is in enough of them."""
    if min(len(known), len(live)) < 2 * _FOLDS:
        return None
    vectorizer = TfidfVectorizer(min_df=_LEAST_TEXTS_OF_A_WORD, binary=True, sublinear_tf=True)
    try:
        features = vectorizer.fit_transform([*live, *known])
    except ValueError:  # no word is in enough texts
        return None
    is_live = np.arange(features.shape[0]) < len(live)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=_SEED)
    scores = cross_val_predict(_classifier(), features, is_live, cv=folds, method="decision_function")
    auc, low, high = area_under_curve(scores[is_live], scores[~is_live])
    weights = _classifier().fit(features, is_live).coef_[0]
    words = vectorizer.get_feature_names_out()
    order = np.argsort(weights)
    live_words = [str(words[place]) for place in order[::-1][:WORDS_TOLD] if weights[place] > 0]
    known_words = [str(words[place]) for place in order[:WORDS_TOLD] if weights[place] < 0]
    return TextDrift(auc, low, high, live_words, known_words)


def _classifier() -> LogisticRegression:
    return LogisticRegression(solver="liblinear", class_weight="balanced", random_state=_SEED)


def area_under_curve(
    positive: npt.NDArray[np.floating], negative: npt.NDArray[np.floating]
) -> tuple[float, float, float]:
    """Return the area under the ROC curve of scores [positives] and [negatives], and the ends of its interval."""
    ranks = rankdata(np.concatenate([positive, negative]))
    above = (ranks[: len(positive)] - rankdata(positive)) / len(negative)
    below = 1 - (ranks[len(positive) :] - rankdata(negative)) / len(positive)
    auc = float(above.mean())
    deviation = (above.var(ddof=1) / len(positive) + below.var(ddof=1) / len(negative)) ** 0.5
    half = float(norm.ppf(0.5 + _COVERAGE / 2) * deviation)
    return auc, max(0.0, auc - half), min(1.0, auc + half)


def label_shift(known: Sequence[str], live: Sequence[str]) -> Shift:
    """Compare the labels predicted for live texts with those predicted for known ones."""
    labels = sorted({*known, *live})
    counts = np.array([[list(given).count(label) for label in labels] for given in (known, live)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    chance = float(chi2_contingency(counts).pvalue) if len(labels) > 1 else 1.0
    moved = int(np.abs(shares[1] - shares[0]).argmax())
    message = (
        f"{shares[1][moved]:.1%} of live texts are predicted as {labels[moved]}, "
        f"and {shares[0][moved]:.1%} of known ones"
    )
    return Shift(float(np.abs(shares[1] - shares[0]).sum() / 2), chance, message)


def length_shift(known: Sequence[int], live: Sequence[int]) -> Shift:
    """Compare the lengths of live texts, in words, with those of known ones."""
    found = ks_2samp(known, live, method="asymp")
    message = f"live texts have {np.median(live):.0f} words (median), and known ones {np.median(known):.0f}"
    return Shift(float(found.statistic), float(found.pvalue), message)


def feedback_shift(is_wrong: npt.NDArray[np.bool_]) -> Shift | None:
    """Compare the newest feedback with that before; `is_wrong` [texts], the oldest first, marks wrong predictions.

    Several numbers of newest texts are tried, and the most significant shift is returned; None with too little
    feedback.
    """
    tried = [newest for newest in NEWEST_FEEDBACK if len(is_wrong) - newest >= LEAST_OLDER_FEEDBACK]
    found = []
    for newest in tried:
        before, after = is_wrong[:-newest], is_wrong[-newest:]
        table = [[after.sum(), len(after) - after.sum()], [before.sum(), len(before) - before.sum()]]
        chance = min(1.0, float(fisher_exact(table, alternative="greater").pvalue) * len(tried))
        rates = float(after.mean()), float(before.mean())
        message = (
            f"{rates[0]:.1%} of the predictions for the newest {newest} texts of feedback are wrong, "
            f"and {rates[1]:.1%} of those before"
        )
        found.append(Shift(max(0.0, rates[0] - rates[1]), chance, message, LEAST_RISE))
    return min(found, key=lambda shift: shift.chance, default=None)
