"""Chooses the threshold of a first stage, and bounds how often both stages differ from the full model alone.

Learn then Test (Angelopoulos et al. 2021, arXiv:2110.01052) with fixed-sequence testing: thresholds are tried from the
most cautious on, each with an exact binomial test (Clopper and Pearson) that more texts than the limit get another
label. The last threshold before the first that fails is chosen. The probability that its risk is over the limit is at
most 5 %, for texts of the same kind as those of the test.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CHANCE = 0.05
"""Probability that the true share of differing texts is over the limit."""


@dataclass(frozen=True)
class Risk:
    """A tested threshold."""

    threshold: float
    bound: float
    """Upper bound, at a confidence of 1 - CHANCE, of the share of texts that get another label."""
    differing: int
    """Number of test texts that got another label."""
    share: float
    """Share of test texts that the first stage decides."""


def least_texts(limit: float) -> int:
    """Return the minimum number of texts for a bound of `limit`: if none of them differs, the bound is just met."""
    return math.ceil(math.log(CHANCE) / math.log1p(-limit))


def safest_share(
    confidence: npt.NDArray[np.floating],
    differs: npt.NDArray[np.bool_],
    thresholds: npt.NDArray[np.floating],
    limit: float,
) -> Risk | None:
    """Return the lowest of the `thresholds` that the fixed sequence accepts; None if it accepts none.

    Args:
        confidence: [texts], the probability that the first stage gives to its label.
        differs: [texts], True if the first stage has another label than the full model.
        thresholds: the thresholds to try, chosen without a look at these texts.
        limit: the largest share of texts that may get another label.
    """
    texts = len(confidence)
    accepted: Risk | None = None
    for threshold in sorted(set(map(float, thresholds)), reverse=True):
        decided = confidence >= threshold
        differing = int((decided & differs).sum())
        if at_most(differing, texts, limit) > CHANCE:
            break
        accepted = Risk(threshold, upper_bound(differing, texts), differing, float(decided.mean()))
    return accepted


def at_most(differing: int, texts: int, share: float) -> float:
    """Return the probability that at most `differing` of the texts differ, if each does with the probability `share`.

    It is the binomial distribution function. Servers have no SciPy.
    """
    if not 0 < share < 1:
        return float(share <= 0 or differing >= texts)
    odds = math.log(share) - math.log1p(-share)
    ways = 0.0  # logarithm of the number of ways to choose the texts that differ
    total = 0.0
    for count in range(differing + 1):
        total += math.exp(ways + count * odds + texts * math.log1p(-share))
        if count < texts:
            ways += math.log(texts - count) - math.log(count + 1)
        else:
            break
    return min(1.0, total)


def upper_bound(differing: int, texts: int) -> float:
    """Return the upper end of Clopper and Pearson's one-sided interval of the share, at a confidence of 1 - CHANCE."""
    low, high = differing / texts, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most(differing, texts, middle) > CHANCE else (low, middle)
    return high
