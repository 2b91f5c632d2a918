"""The certificate of a first stage: the true share of differing texts is seldom over the limit, whatever the model."""

import numpy as np
import pytest
from scipy.stats import beta, binom

from serving.backend.certificate import CHANCE, at_most, least_texts, safest_share, upper_bound

THRESHOLDS = np.linspace(0, 1, 101)
REPETITIONS = 400


@pytest.mark.parametrize("limit", [0.01, 0.02])
def test_the_true_share_is_over_the_limit_in_at_most_one_of_twenty_draws(limit: float) -> None:
    # The label differs with a probability that falls from 0.4 to 0 while the confidence rises, so the risk of each
    # threshold is known: the integral of (1 - confidence) * 0.4 from the threshold to 1.
    draw = np.random.default_rng(0)
    over = accepted = 0
    for _ in range(REPETITIONS):
        confidence = draw.uniform(size=1_300)
        differs = draw.uniform(size=1_300) < 0.4 * (1 - confidence)
        risk = safest_share(confidence, differs, THRESHOLDS, limit)
        if risk is not None:
            accepted += 1
            over += 0.2 * (1 - risk.threshold) ** 2 > limit
            assert risk.bound <= limit
            assert risk.share == np.mean(confidence >= risk.threshold)
    assert accepted > 0.95 * REPETITIONS
    assert over <= binom.ppf(0.999, REPETITIONS, CHANCE)


def test_fewer_texts_than_needed_give_no_certificate() -> None:
    for limit in (0.01, 0.02, 0.1):
        least = least_texts(limit)
        for texts, is_enough in ((least - 1, False), (least, True)):
            found = safest_share(np.ones(texts), np.zeros(texts, dtype=bool), THRESHOLDS, limit)
            assert (found is not None) is is_enough
    assert least_texts(0.01) == 299


def test_the_sequence_ends_at_the_first_threshold_that_fails() -> None:
    # All differing texts have a high confidence, so the first thresholds fail, although lower ones would pass too.
    confidence = np.repeat([0.9, 0.1], 1_000)
    differs = np.arange(2_000) < 100
    chosen = safest_share(confidence, differs, np.array([0.95, 0.5]), 0.02)
    assert chosen is not None
    assert (chosen.threshold, chosen.differing, chosen.share) == (0.95, 0, 0.0)
    assert safest_share(confidence, differs, np.array([0.5]), 0.02) is None


@pytest.mark.parametrize(("differing", "texts"), [(0, 1), (1, 1), (0, 299), (7, 1_305), (130, 100_000), (1_305, 1_305)])
def test_the_probabilities_are_those_of_scipy(differing: int, texts: int) -> None:
    for share in (0.0, 0.001, 0.01, 0.5, 0.999, 1.0):
        assert at_most(differing, texts, share) == pytest.approx(binom.cdf(differing, texts, share), rel=1e-6)
    bound = beta.ppf(1 - CHANCE, differing + 1, texts - differing) if differing < texts else 1.0
    assert upper_bound(differing, texts) == pytest.approx(bound, abs=1e-9)
