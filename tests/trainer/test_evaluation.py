"""The figures by which models are judged."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.metrics import accuracy_score, f1_score

from trainer.evaluation import (
    at_bound,
    evaluate,
    evaluate_answers,
    expected_calibration_error,
    fit_temperature,
    macro_f1,
)


def test_figures_of_a_small_example() -> None:
    predicted = [0, 0, 1, 1, 1, 1]
    probabilities = np.array([[0.9, 0.1] if label == 0 else [0.2, 0.8] for label in predicted])
    figures = evaluate(probabilities, np.array([0, 1, 1, 1, 1, 0]), ("bad", "good"))
    assert figures.accuracy == pytest.approx(4 / 6)
    assert figures.f1_by_label == {"bad": pytest.approx(0.5), "good": pytest.approx(0.75)}
    assert figures.macro_f1 == pytest.approx(0.625)
    assert figures.confusion == [[1, 1], [1, 3]]
    assert figures.metrics()["f1_good"] == pytest.approx(0.75)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    sure = np.full(10, 0.9)
    assert expected_calibration_error(sure, np.array([True] * 9 + [False])) == pytest.approx(0)
    assert expected_calibration_error(sure, np.array([True] * 5 + [False] * 5)) == pytest.approx(0.4)


def test_overconfident_logits_are_cooled() -> None:
    random = np.random.default_rng(0)
    honest = random.normal(0, 1.5, (4000, 2))
    targets = (random.random(4000) > softmax(honest, axis=1)[:, 0]).astype(int)
    assert fit_temperature(honest * 3, targets) == pytest.approx(3, rel=0.1)


def test_gaps_of_two_bins_do_not_cancel_out_and_certainty_has_a_bin() -> None:
    confidence = np.array([1.0] * 10 + [0.6] * 10)
    correct = np.array(([True] * 8 + [False] * 2) * 2)
    assert expected_calibration_error(confidence, correct) == pytest.approx(0.2)


def test_a_label_that_nobody_asked_for_does_not_count_in_macro_f1() -> None:
    figures = evaluate(np.array([[0.8, 0.2]] * 9 + [[0.2, 0.8]]), np.array([0] * 10), ("a", "b"))
    assert figures.macro_f1 == figures.f1_by_label["a"] == pytest.approx(18 / 19)


def test_label_that_is_never_predicted_has_an_f1_of_0() -> None:
    figures = evaluate(np.array([[0.8, 0.1, 0.1]] * 4), np.array([0, 0, 1, 2]), ("a", "b", "c"))
    assert figures.f1_by_label == {"a": pytest.approx(2 / 3), "b": 0, "c": 0}
    assert figures.confusion == [[2, 0, 0], [1, 0, 0], [1, 0, 0]]


@given(st.floats(0.1, 20), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_no_other_temperature_has_less_log_loss_and_no_label_changes(scale: float, seed: int, noise: float) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, scale, (50, 3))
    targets = np.where(random.random(50) < noise, random.integers(0, 3, 50), logits.argmax(axis=1))
    logits, targets = np.tile(logits, (40, 1)), np.tile(targets, 40)  # so many texts that the prior hardly counts

    def log_loss(temperature: float) -> float:
        return float(-log_softmax(logits / temperature, axis=1)[np.arange(2_000), targets].mean())

    temperature = fit_temperature(logits, targets)
    assert 0.25 <= temperature <= 10
    assert all(log_loss(temperature) <= log_loss(other) + 3e-3 for other in np.geomspace(0.25, 10, 30))
    assert (softmax(logits / temperature, axis=1).argmax(axis=1) == logits.argmax(axis=1)).all()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 4)), min_size=1, max_size=60))
def test_f1_is_that_of_scikit_learn(rows: list[tuple[int, int]]) -> None:
    targets, predicted = np.array(rows, dtype=np.int64).T
    occurring = f1_score(targets, predicted, labels=np.unique(targets), average="macro", zero_division=0)
    assert macro_f1(predicted, targets) == pytest.approx(occurring, abs=1e-12)
    by_label = f1_score(targets, predicted, labels=list(range(6)), average=None, zero_division=0)
    evaluation = evaluate_answers(predicted, np.ones(len(rows)), targets, tuple("abcdef"))
    assert list(evaluation.f1_by_label.values()) == pytest.approx(list(by_label), abs=1e-12)
    assert evaluation.accuracy == accuracy_score(targets, predicted)


def test_few_texts_without_errors_hardly_raise_the_scores() -> None:
    """Three held-out texts, all right, do not show that scores of 0.95 are too low; 3,000 do."""
    logits, targets = np.array([[3.0, 0.0]] * 3), np.zeros(3, dtype=int)
    assert fit_temperature(logits, targets) == pytest.approx(1, abs=0.1)
    assert fit_temperature(np.tile(logits, (1_000, 1)), np.tile(targets, 1_000)) < 0.6


def test_a_temperature_at_its_bound_is_told() -> None:
    sure = np.array([[1.0, 0.0], [0.0, 1.0]] * 500)
    right, wrong = np.array([0, 1] * 500), np.array([1, 0] * 500)
    assert "stopped at its bound 0.25" in at_bound(fit_temperature(sure, right))
    assert "stopped at its bound 10" in at_bound(fit_temperature(sure, wrong))
    assert at_bound(1.0) == ""
