"""Drift: what has changed is noticed and named, and what has not is left alone."""

import random

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lifecycle.monitoring.drift import area_under_curve, feedback_shift, label_shift, length_shift, text_drift

WORDS = [f"word{number}" for number in range(300)]
OTHERS = [f"other{number}" for number in range(20)]


def sentences(seed: int, texts: int, share_of_others: float = 0.0) -> list[str]:
    """Texts of ten words, of which so many are others."""
    chosen = random.Random(seed)
    return [
        " ".join(chosen.choice(OTHERS if chosen.random() < share_of_others else WORDS) for _ in range(10))
        for _ in range(texts)
    ]


def test_texts_of_the_same_kind_cannot_be_told_apart() -> None:
    found = [text_drift(sentences(0, 1_000), sentences(seed, 500)) for seed in range(1, 11)]
    assert not [drift.alarm for drift in found if drift and drift.alarm]
    assert np.mean([drift.auc for drift in found if drift]) == pytest.approx(0.5, abs=0.03)
    held = sum(drift.low <= 0.5 <= drift.high for drift in found if drift)
    assert held >= 7


def test_texts_of_another_kind_are_told_by_their_words() -> None:
    known = [f"{text} film" for text in sentences(0, 1_000)]
    live = [f"{text} @you" for text in sentences(1, 500)]
    drift = text_drift(known, live)
    assert drift is not None
    assert drift.auc > 0.99
    assert (drift.live_words[0], drift.known_words[0]) == ("you", "film")
    assert drift.alarm.startswith("live texts differ from known ones (ROC AUC 1.000")
    slight = text_drift(sentences(0, 1_000), sentences(1, 500, share_of_others=0.1))
    assert slight is not None
    assert slight.alarm
    assert all(word.startswith("other") for word in slight.live_words[:5])


def test_a_word_of_few_texts_is_not_told() -> None:
    drift = text_drift(sentences(0, 500), [*sentences(1, 496), *["my secret name"] * 4])
    assert drift is not None
    assert not {"my", "secret", "name"} & {*drift.live_words, *drift.known_words}


@pytest.mark.parametrize("live", [[], ["one"] * 9, [str(number) * 3 for number in range(50)]])
def test_nothing_is_said_of_texts_that_are_too_few_or_share_no_words(live: list[str]) -> None:
    assert text_drift([f"a{number}" for number in range(50)], live) is None


def test_the_area_and_its_interval_are_right() -> None:
    generator = np.random.default_rng(13)
    held = 0
    for _ in range(200):
        positive, negative = generator.normal(1, 1, 80).round(1), generator.normal(0, 1, 120).round(1)
        auc, low, high = area_under_curve(positive, negative)
        truth = [1] * len(positive) + [0] * len(negative)
        assert auc == pytest.approx(roc_auc_score(truth, np.concatenate([positive, negative])))
        held += low <= 0.7602 <= high  # of two normal distributions a deviation apart
    assert held >= 180


def test_labels_that_are_given_more_often_are_told() -> None:
    known = ["good"] * 500 + ["bad"] * 500
    assert label_shift(known, ["good"] * 245 + ["bad"] * 255).alarm == ""
    assert label_shift(["good"] * 9, ["good"] * 9).alarm == ""
    # Surely another share, but hardly another.
    assert label_shift(known * 100, ["good"] * 55_000 + ["bad"] * 45_000).alarm == ""
    moved = label_shift(known, ["good"] * 350 + ["bad"] * 140 + ["odd"] * 10)
    assert moved.distance == pytest.approx(0.22)
    assert moved.alarm == "28.0% of live texts are predicted as bad, and 50.0% of known ones"


def test_texts_that_have_become_longer_are_told() -> None:
    generator = np.random.default_rng(13)
    known, same, longer = generator.poisson(20, 1_000), generator.poisson(20, 500), generator.poisson(28, 500)
    assert length_shift(list(known), list(same)).alarm == ""
    assert length_shift(list(known), list(longer)).alarm == "live texts have 27 words (median), and known ones 20"


def test_errors_that_have_become_more_are_told_with_the_split_that_tells_most() -> None:
    before = np.arange(1_000) % 8 == 0
    assert feedback_shift(before[:99]) is None
    unchanged = feedback_shift(before)
    assert unchanged is not None
    assert unchanged.alarm == ""
    worse = feedback_shift(np.concatenate([before, np.arange(150) % 3 == 0]))
    assert worse is not None
    assert (
        worse.alarm
        == "33.3% of the predictions for the newest 150 texts of feedback are wrong, and 12.5% of those before"
    )
    better = feedback_shift(np.concatenate([before, np.zeros(400, dtype=bool)]))
    assert better is not None
    assert better.alarm == ""
