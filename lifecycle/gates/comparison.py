"""Whether a candidate is worse than the champion, on the same texts: a paired bootstrap.

Pairs of answers are drawn with replacement, so that what makes a text hard for both cancels out. Efron and Tibshirani,
"An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals); for paired comparisons of classifiers,
Koehn, "Statistical Significance Tests for Machine Translation Evaluation", EMNLP 2004.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storage.tables import Figures
from storage.versions import GateVerdict

RESAMPLES = 1_000
CHANCE = 0.05
"""Of an interval that misses the true difference; of all parts' intervals together (Bonferroni), for of six equal
parts one would look worse in every seventh comparison otherwise."""
LARGEST_LOSS = 0.01
"""Of accuracy or macro F1 over all texts, whether or not it could be chance."""
LEAST_SLICE_TEXTS = 50
"""In fewer texts, a difference of six points is one of three texts."""
_SEED = 0

Indices = npt.NDArray[np.int64]
Measure = Callable[[Indices, Indices], float]


@dataclass(frozen=True)
class PairedAnswers:
    """What both models answered to the same texts; each [texts], indices of labels."""

    targets: Indices
    champion: Indices
    candidate: Indices

    def where(self, chosen: npt.NDArray[np.bool_]) -> "PairedAnswers":
        """Those of some texts."""
        return PairedAnswers(self.targets[chosen], self.champion[chosen], self.candidate[chosen])


@dataclass(frozen=True)
class Difference:
    """By how much the candidate's figure is above the champion's."""

    champion: float
    candidate: float
    low: float
    high: float
    """Ends of the interval of the difference."""

    @property
    def value(self) -> float:
        """The difference itself."""
        return self.candidate - self.champion

    @property
    def is_worse(self) -> bool:
        """Whether the candidate is worse by more than chance explains."""
        return self.high < 0

    def figures(self) -> Figures:
        """For the verdict."""
        return {
            "champion": self.champion,
            "candidate": self.candidate,
            "difference": self.value,
            "interval": [self.low, self.high],
        }

    def __str__(self) -> str:
        """As in a verdict's message."""
        return f"{self.champion:.4f} → {self.candidate:.4f} ({self.low:+.4f} to {self.high:+.4f})"


def accuracy(predicted: Indices, targets: Indices) -> float:
    """Share of right labels."""
    return float(np.mean(predicted == targets))


def difference(answers: PairedAnswers, measure: Measure, comparisons: int = 1) -> Difference:
    """The difference of a figure, with its interval, which is one of so many `comparisons`."""
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


def fast_macro_f1(predicted: Indices, targets: Indices) -> float:
    """`evaluation.macro_f1` for thousands of resamples: the same figure, without the library's checks of each."""
    labels = int(max(predicted.max(), targets.max())) + 1
    right = np.bincount(targets[predicted == targets], minlength=labels)
    asked = np.bincount(targets, minlength=labels)
    answered = np.bincount(predicted[predicted >= 0], minlength=labels)
    occur = asked > 0
    return float(np.mean(2 * right[occur] / (asked[occur] + answered[occur])))


def not_worse(answers: PairedAnswers) -> GateVerdict:
    """The gate over all texts: neither a loss beyond chance, nor one of over `LARGEST_LOSS`."""
    found = {"accuracy": difference(answers, accuracy), "macro F1": difference(answers, fast_macro_f1)}
    failed = [name for name, item in found.items() if item.is_worse or item.value < -LARGEST_LOSS]
    told = ", ".join(f"{name} {item}" for name, item in found.items())
    message = f"{'Worse' if failed else 'Not worse'} than the champion on {len(answers.targets)} texts: {told}."
    figures: Figures = {name: item.figures() for name, item in found.items()}
    return GateVerdict("comparison", not failed, message, {"texts": len(answers.targets), **figures})


def f1_of(label: int) -> Measure:
    """The F1 of one label; 0 where it neither occurs nor is answered."""

    def measure(predicted: Indices, targets: Indices) -> float:
        right = np.count_nonzero((predicted == label) & (targets == label))
        return float(2 * right / max(1, np.count_nonzero(predicted == label) + np.count_nonzero(targets == label)))

    return measure


def not_worse_on_slices(
    answers: PairedAnswers, labels: Sequence[str], slices: dict[str, npt.NDArray[np.bool_]]
) -> GateVerdict:
    """The gate on each label and slice with enough texts: no loss of the label's F1, or of accuracy, beyond chance.

    Of a label it is F1, over all texts: its share of right answers alone would hold for ever with a champion that gives
    the label too often.
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
        f"Worse on {'; '.join(failed)}." if failed else f"Worse on none of {len(found)} slices ({', '.join(found)})."
    )
    figures: Figures = {name: {"texts": int(chosen[name].sum()), **item.figures()} for name, item in found.items()}
    return GateVerdict("slices", not failed, message, figures)
