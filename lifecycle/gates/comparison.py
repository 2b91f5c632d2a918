"""Tests whether a candidate is worse than the champion on the same texts, by a paired bootstrap.

Pairs of predictions are drawn with replacement, so that the difficulty of a text for both models cancels out. Efron and
Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals); for paired comparisons of
classifiers, Koehn, "Statistical Significance Tests for Machine Translation Evaluation", EMNLP 2004.

Negative flips are texts that the champion has right and the candidate wrong: users notice them, however good the
candidate is on the whole (Yan et al., "Positive-Congruent Training", CVPR 2021, arXiv 2011.09161).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from storage.tables import Figures
from storage.versions import GateVerdict
from trainer.evaluation import LARGEST_LOSS, f1_scores, macro_f1

RESAMPLES = 1_000
CHANCE = 0.05
"""Probability that an interval misses the true difference; for several parts, that any does (Bonferroni). Otherwise,
with six equal parts, one would look worse in every seventh comparison."""
LEAST_SLICE_TEXTS = 50
"""Minimum number of texts in a slice. In fewer texts, a difference of six points is less than three texts."""
FLIPS = "flips"
"""Name of the gate on negative flips."""
_SEED = 0

Indices = npt.NDArray[np.int64]
Measure = Callable[[Indices, Indices], float]


@dataclass(frozen=True)
class PairedAnswers:
    """Right labels, and both models' predictions for the same texts; each [texts], indices of labels."""

    targets: Indices
    champion: Indices
    candidate: Indices

    def where(self, chosen: npt.NDArray[np.bool_]) -> "PairedAnswers":
        """Return the predictions for the `chosen` texts."""
        return PairedAnswers(self.targets[chosen], self.champion[chosen], self.candidate[chosen])


@dataclass(frozen=True)
class Difference:
    """The candidate's and the champion's value of a measure, with the interval of their difference."""

    champion: float
    candidate: float
    low: float
    high: float
    """`low` and `high` are the ends of the interval of the difference."""

    @property
    def value(self) -> float:
        """The candidate's value minus the champion's."""
        return self.candidate - self.champion

    @property
    def is_worse(self) -> bool:
        """True if the candidate is worse by more than chance explains."""
        return self.high < 0

    def figures(self) -> Figures:
        """Return the figures for the verdict."""
        return {
            "champion": self.champion,
            "candidate": self.candidate,
            "difference": self.value,
            "interval": [self.low, self.high],
        }

    def __str__(self) -> str:
        """Format the difference for a verdict's message."""
        return f"{self.champion:.4f} → {self.candidate:.4f} (difference {self.low:+.4f} to {self.high:+.4f})"


def accuracy(predicted: Indices, targets: Indices) -> float:
    """Return the share of right labels."""
    return float(np.mean(predicted == targets))


def difference(answers: PairedAnswers, measure: Measure, comparisons: int = 1) -> Difference:
    """Return the difference of a measure with its interval, corrected for the number of `comparisons`."""
    random = np.random.default_rng(_SEED)
    resampled = []
    for _ in range(RESAMPLES * comparisons):
        drawn = random.integers(0, len(answers.targets), len(answers.targets))
        targets = answers.targets[drawn]
        resampled.append(measure(answers.candidate[drawn], targets) - measure(answers.champion[drawn], targets))
    tail = 100 * CHANCE / 2 / comparisons
    low, high = np.percentile(resampled, (tail, 100 - tail))
    return Difference(
        champion=measure(answers.champion, answers.targets),
        candidate=measure(answers.candidate, answers.targets),
        low=float(low),
        high=float(high),
    )


def not_worse(answers: PairedAnswers) -> GateVerdict:
    """Gate over all texts: no loss beyond chance, and none over `LARGEST_LOSS`."""
    found = {"accuracy": difference(answers, accuracy), "macro F1": difference(answers, macro_f1)}
    failed = [name for name, item in found.items() if item.is_worse or item.value < -LARGEST_LOSS]
    told = ", ".join(f"{name} {item}" for name, item in found.items())
    message = (
        f"{'Worse' if failed else 'Not worse'} than the deployed version on {len(answers.targets)} texts: {told}. "
        f"The true differences lie in these ranges with {1 - CHANCE:.0%} confidence."
    )
    figures: Figures = {name: item.figures() for name, item in found.items()}
    return GateVerdict("comparison", not failed, message, {"texts": len(answers.targets), **figures})


def few_flips(answers: PairedAnswers, limit: float) -> GateVerdict:
    """Gate on negative flips: it fails if their share of all texts is above `limit` beyond chance (Clopper–Pearson)."""
    was_right, is_right = (predicted == answers.targets for predicted in (answers.champion, answers.candidate))
    texts, flips, gains = len(answers.targets), int((was_right & ~is_right).sum()), int((~was_right & is_right).sum())
    interval = stats.binomtest(flips, texts).proportion_ci(1 - CHANCE)
    passed = interval.low <= limit
    message = (
        f"{flips:,} of {texts:,} texts ({flips / texts:.1%}; with chance, {interval.low:.1%} to {interval.high:.1%}) "
        f"were right and are wrong now, and {gains:,} the other way"
    )
    if not passed:
        message += (
            f"; at most {limit:.1%} may be. Promote it if that is worth it, or raise SENTIMENT_MAX_NEGATIVE_FLIPS"
        )
    figures: Figures = {
        "texts": texts,
        "negative flips": flips,
        "positive flips": gains,
        "share": flips / texts,
        "interval": [interval.low, interval.high],
        "limit": limit,
    }
    return GateVerdict(FLIPS, passed, f"{message}.", figures)


def f1_of(label: int) -> Measure:
    """Return a function that computes the F1 of one label; 0 if the label neither occurs nor is predicted."""

    def measure(predicted: Indices, targets: Indices) -> float:
        is_answered, is_asked = predicted == label, targets == label
        return float(f1_scores((is_answered & is_asked).sum(), is_asked.sum(), is_answered.sum()))

    return measure


def not_worse_on_slices(
    answers: PairedAnswers, labels: Sequence[str], slices: dict[str, npt.NDArray[np.bool_]]
) -> GateVerdict:
    """Gate on each label and slice with enough texts: no loss of the label's F1 or the slice's accuracy beyond chance.

    A label is measured by F1 over all texts. Recall alone would always favour a champion that predicts the label too
    often.
    """
    occurs = {f"label {label}": answers.targets == index for index, label in enumerate(labels)}
    measures = {name: f1_of(index) for index, name in enumerate(occurs)}
    chosen = {name: texts for name, texts in (occurs | slices).items() if texts.sum() >= LEAST_SLICE_TEXTS}
    found = {
        name: difference(answers, measures[name], len(chosen))
        if name in measures
        else difference(answers.where(texts), accuracy, len(chosen))
        for name, texts in chosen.items()
    }
    failed = [f"{name} {item}" for name, item in found.items() if item.is_worse]
    message = (
        f"Worse on {'; '.join(failed)}."
        if failed
        else f"Not worse, beyond chance, on any of {len(found)} groups of texts ({', '.join(found)})."
    )
    if not found:
        message = f"No group of texts has {LEAST_SLICE_TEXTS} texts, so none is compared."
    figures: Figures = {name: {"texts": int(chosen[name].sum()), **item.figures()} for name, item in found.items()}
    return GateVerdict("slices", not failed, message, figures)
