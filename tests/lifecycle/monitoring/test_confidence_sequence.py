"""The interval for the accuracy is right at every moment, and narrow enough to decide after few labels."""

from collections.abc import Sequence

import numpy as np
import pytest

from lifecycle.monitoring.confidence_sequence import ERROR, Interval, decides, interval, intervals, labels_to_decide

THRESHOLD = 0.8
REPETITIONS = 300


def ever_wrong(right: int, texts: int, repetitions: int, threshold: float = THRESHOLD) -> tuple[float, float]:
    """How often each end is wrong at any moment from the first label to the last, in random orders."""
    random = np.random.default_rng(0)
    predictions = np.arange(texts) < right
    found = [interval([*map(bool, random.permutation(predictions))], texts, threshold) for _ in range(repetitions)]
    # Each end only moves inwards, so an end that was ever wrong is wrong after the last label.
    return (
        float(np.mean([item.low > right for item in found])),
        float(np.mean([item.high < right for item in found])),
    )


@pytest.mark.parametrize(("right", "threshold"), [(36, 0.8), (48, 0.8), (48, 0.5), (30, 0.95)])
def test_each_end_is_right_at_every_moment(right: int, threshold: float) -> None:
    low, high = ever_wrong(right, 60, REPETITIONS, threshold)
    bound = ERROR + 4 * (ERROR * (1 - ERROR) / REPETITIONS) ** 0.5  # four standard errors
    assert low <= bound
    assert high <= bound


def test_the_usual_interval_would_be_wrong_far_more_often() -> None:
    """The bound of the test above is one that an interval for a fixed number of labels does not keep."""
    random = np.random.default_rng(0)
    labels = np.arange(1, 501)
    wrong = 0
    for _ in range(400):
        right = np.cumsum(random.random(500) < THRESHOLD)
        share = right / labels
        wrong += bool((share + 1.645 * np.sqrt(share * (1 - share) / labels) < THRESHOLD)[20:].any())
    assert wrong / 400 > 3 * ERROR


def needed(order: Sequence[bool]) -> tuple[int, bool]:
    """After how many labels they decide, and what."""
    for labels, found in enumerate(intervals(order, len(order), THRESHOLD)):
        is_under = decides(found, len(order), THRESHOLD)
        if is_under is not None:
            return labels, is_under
    raise AssertionError("all labels together decide")


@pytest.mark.parametrize(("right", "most"), [(1_200, 80), (1_900, 90)])
def test_decisions_are_right_and_early_where_the_accuracy_is_far_from_the_threshold(right: int, most: int) -> None:
    random = np.random.default_rng(0)
    found = [needed([*map(bool, random.permutation(np.arange(2_000) < right))]) for _ in range(20)]
    assert np.median([labels for labels, _ in found]) <= most
    assert sum(is_under is not (right < 1_600) for _, is_under in found) <= 4, "of 20; 5 % are 1"


def test_without_labels_anything_is_possible_and_with_all_nothing_is_uncertain() -> None:
    assert interval([], 50, THRESHOLD) == Interval(0, 50)
    assert interval([True, False] * 20 + [True] * 10, 50, THRESHOLD) == Interval(30, 30)
    assert interval([True] * 30 + [False] * 20, 50, THRESHOLD) == Interval(30, 30), "in no random order"
    assert interval([True] * 3, 3, 1.0) == Interval(3, 3)
    assert interval([False] * 3, 3, 0.0) == Interval(0, 0)
    assert interval([], 0, THRESHOLD) == Interval(0, 0)


@pytest.mark.parametrize(
    ("found", "is_under"), [((79, 79), True), ((80, 80), False), ((79, 80), None), ((0, 100), None), ((90, 99), False)]
)
def test_an_accuracy_at_the_threshold_is_not_under_it(found: tuple[int, int], is_under: bool | None) -> None:
    assert decides(Interval(*found), 100, THRESHOLD) is is_under


def test_how_many_more_labels_decide_is_about_right() -> None:
    random = np.random.default_rng(1)
    told, later = [], []
    for _ in range(40):
        order = [*map(bool, random.permutation(np.arange(1_000) < 700))]
        if (labels := needed(order)[0]) > 40:
            right = sum(order[:40])
            told.append(labels_to_decide(right, 40 - right, 1_000, THRESHOLD))
            later.append(labels - 40)
    assert len(told) > 15
    assert 1 / 3 < np.median(told) / np.median(later) < 3
    assert labels_to_decide(50, 50, 100, THRESHOLD) == 0, "all texts have labels"
