"""Accuracy and F1 without labels: near the truth where the model is calibrated, and as sure as they say."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import softmax

from lifecycle.monitoring.estimation import Calibration, calibrate, estimate
from trainer.evaluation import macro_f1

HONEST = Calibration(1.0, 0.0)
THREE = ("bad", "fair", "good")


def draw(
    random: np.random.Generator, texts: int, labels: int, inverse_temperature: float = 1.0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Probabilities that a model gives, and the right labels; by another temperature than 1 it misjudges itself."""
    logits = random.normal(0, 2, (texts, labels)) + np.linspace(0, 1, labels)
    honest = softmax(logits, axis=1)
    targets = (honest.cumsum(axis=1)[:, :-1] < random.random((texts, 1))).sum(axis=1)
    return softmax(logits / inverse_temperature, axis=1), targets


@pytest.mark.parametrize("labels", [("no", "yes"), THREE])
def test_the_intervals_hold_the_truth_as_often_as_they_say(labels: tuple[str, ...]) -> None:
    random = np.random.default_rng(13)
    windows, held, errors = 100, np.zeros(3), []
    for _ in range(windows):
        probabilities, targets = draw(random, 500, len(labels))
        found = estimate(probabilities, labels, HONEST)
        predicted = probabilities.argmax(axis=1)
        first_right = np.count_nonzero((predicted == 0) & (targets == 0))
        first_f1 = 2 * first_right / (np.count_nonzero(predicted == 0) + np.count_nonzero(targets == 0))
        true = (np.mean(predicted == targets), macro_f1(predicted, targets), first_f1)
        told = (found.accuracy, found.macro_f1, found.f1_by_label[labels[0]])
        held += [item.low <= value <= item.high for item, value in zip(told, true, strict=True)]
        errors.append([item.value - value for item, value in zip(told, true, strict=True)])
    # Of 100 windows 95 ± 2.2.
    assert all(times >= 88 for times in held), held
    # The mean of 100 errors, each of about two points.
    assert np.abs(np.mean(errors, axis=0)).max() < 0.01


def test_a_model_that_is_too_sure_of_itself_is_seen_through_where_labels_are_known() -> None:
    random = np.random.default_rng(13)
    known, targets = draw(random, 1_300, 2, inverse_temperature=0.5)
    live, truth = draw(random, 2_000, 2, inverse_temperature=0.5)
    accuracy = np.mean(live.argmax(axis=1) == truth)
    calibration = calibrate(known, targets)
    assert calibration.inverse_temperature == pytest.approx(0.5, abs=0.1)
    assert calibration.deviation == pytest.approx(0.04, abs=0.03)
    blind, seeing = estimate(live, ("no", "yes"), HONEST), estimate(live, ("no", "yes"), calibration)
    assert blind.accuracy.low > accuracy
    assert seeing.accuracy.low <= accuracy <= seeing.accuracy.high
    # That the temperature is known from so many texts only makes the interval wider.
    certain = estimate(live, ("no", "yes"), Calibration(calibration.inverse_temperature, 0.0))
    width = seeing.accuracy.high - seeing.accuracy.low
    assert width > 1.1 * (certain.accuracy.high - certain.accuracy.low)


def test_a_label_that_nobody_expects_does_not_count_in_macro_f1() -> None:
    probabilities = np.tile([0.8, 0.2 - 1e-7, 1e-7], (200, 1))
    probabilities[:100] = [0.1, 0.9 - 1e-7, 1e-7]
    found = estimate(probabilities, THREE, HONEST)
    assert found.f1_by_label["good"].value == pytest.approx(0, abs=1e-3)
    assert found.macro_f1.value == pytest.approx((found.f1_by_label["bad"].value + found.f1_by_label["fair"].value) / 2)
    assert found.accuracy.value == pytest.approx(0.85)


def test_answers_that_are_all_certain_and_right_are_no_trouble() -> None:
    targets = np.arange(300) % 2
    calibration = calibrate(np.eye(2)[targets], targets)
    found = estimate(np.eye(2)[targets], ("no", "yes"), calibration)
    assert found.accuracy.value == pytest.approx(1, abs=1e-3)
    assert found.figures()["accuracy"] == [found.accuracy.value, found.accuracy.low, found.accuracy.high]
