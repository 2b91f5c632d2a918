"""The accuracy on a finite set of texts from a few random labels, with an interval that is valid at every moment.

Texts are labelled in uniformly random order. A person may look at the interval after each label, and stop when it is
narrow enough: each end is wrong at any moment with a probability of at most `ERROR`.

Each end is a test of every possible number of right predictions in the set. A test compares the likelihood of the
labels under that number with their mean likelihood under all larger numbers (or all smaller ones), weighted by a
beta-binomial prior. Under the tested number this ratio is a martingale, and under a number on its other side a
supermartingale. So it ever exceeds 1 / `ERROR` with a probability of at most `ERROR` (Ville's inequality): I.
Waudby-Smith and A. Ramdas, "Confidence sequences for sampling without replacement", NeurIPS 2020 (arXiv:2006.04347),
section 2, here with one-sided alternatives. The prior is centred at the threshold, where few labels are hardest to get.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

ERROR = 0.05
"""Maximum probability that an end of the interval is ever wrong, and so of a wrong decision."""
_PRIOR_TEXTS = 10.0
"""Weight of the prior, as a number of texts."""
_LEAST_SHARE = 0.01

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """Bounds of the number of right predictions in a set of texts; both ends are possible."""

    low: int
    high: int


def interval(is_right: Sequence[bool], texts: int, threshold: float) -> Interval:
    """Return the interval after the labels `is_right`, in their random order, of a set of `texts` texts.

    `threshold`, an accuracy, is where the interval becomes narrow first.
    """
    *_, last = intervals(is_right, texts, threshold)
    return last


def intervals(is_right: Iterable[bool], texts: int, threshold: float) -> Iterator[Interval]:
    """Yield the interval before the first label and after each one."""
    tests = _Tests(texts, threshold)
    low, high = 0, texts
    yield Interval(low, high)
    right = 0
    for labels, is_next_right in enumerate(is_right, start=1):
        right += is_next_right
        found = tests.interval(right, labels - right)
        low, high = max(low, found.low), min(high, found.high)
        # Ends that cross prove that one of them was wrong; then the later one is as good as any.
        yield Interval(low, high) if low <= high else found


def decides(found: Interval, texts: int, threshold: float) -> bool | None:
    """Return whether the accuracy is under `threshold`, or None if the interval includes both."""
    if found.high < threshold * texts:
        return True
    return False if found.low >= threshold * texts else None


def labels_to_decide(right: int, wrong: int, texts: int, threshold: float) -> int:
    """Return about how many more labels decide if the share of right predictions stays as it is."""
    tests = _Tests(texts, threshold)
    share = (right + threshold) / (right + wrong + 1)  # neither 0 nor 1
    left = texts - right - wrong
    few, many = 0, left
    while few < many:
        more = (few + many) // 2
        more_right = round(share * more)
        found = tests.interval(right + more_right, wrong + more - more_right)
        if decides(found, texts, threshold) is None:
            few = more + 1
        else:
            many = more
    return few


class _Tests:
    """The tests of all numbers of right predictions in a set of texts."""

    def __init__(self, texts: int, threshold: float) -> None:
        self._log_factorials = _log_factorials(texts)
        self._prior = _log_prior(texts, min(max(threshold, _LEAST_SHARE), 1 - _LEAST_SHARE))
        self._below = _log_sums(self._prior)
        self._above = _log_sums(self._prior[::-1])[::-1]
        self._texts = texts

    def interval(self, right: int, wrong: int) -> Interval:
        """Return the interval after so many right and wrong predictions, without those before them."""
        # All numbers that the labels leave possible: `right` to `texts - wrong`.
        possible = slice(right, self._texts - wrong + 1)
        factorials = self._log_factorials
        span = self._texts - right - wrong + 1
        likelihood = (
            factorials[possible] - factorials[:span] + (factorials[wrong : wrong + span] - factorials[:span])[::-1]
        )
        joint = likelihood + self._prior[possible]
        with np.errstate(invalid="ignore"):  # no alternative is left at an end: the ratio is not a number there
            over = _log_sums(joint[::-1])[::-1] - self._above[possible] - likelihood
            under = _log_sums(joint) - self._below[possible] - likelihood
        bound = -np.log(ERROR)
        too_low, too_high = np.flatnonzero(over >= bound), np.flatnonzero(under >= bound)
        low = right + (int(too_low[-1]) + 1 if len(too_low) else 0)
        return Interval(low, right + (int(too_high[0]) - 1 if len(too_high) else span - 1))


@lru_cache(maxsize=8)
def _log_factorials(texts: int) -> _Floats:
    """Return the logarithms of 0! to `texts`!."""
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, texts + 1)))])


@lru_cache(maxsize=8)
def _log_prior(texts: int, threshold: float) -> _Floats:
    """Return the logarithm of the beta-binomial prior of 0 to `texts` right predictions, but for a constant."""
    numbers = np.arange(1, texts + 1)
    a, b = _PRIOR_TEXTS * threshold, _PRIOR_TEXTS * (1 - threshold)
    steps = np.log((texts - numbers + 1) / numbers) + np.log((numbers - 1 + a) / (texts - numbers + b))
    return np.concatenate([[0.0], np.cumsum(steps)])


def _log_sums(logs: _Floats) -> _Floats:
    """Return the logarithm of the sum of all entries before each entry; minus infinity for the first."""
    largest = logs.max()
    with np.errstate(divide="ignore"):
        sums = np.log(np.cumsum(np.exp(logs - largest))) + largest
    return np.concatenate([[-np.inf], sums[:-1]])
