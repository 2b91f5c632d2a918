"""How good answers are, estimated without labels from the probabilities that the model gives.

A calibrated model that gives its labels 0.9 is right nine times of ten. So the mean of these probabilities is the
expected accuracy, and the probabilities of all labels are the expected confusion matrix, from which F1 follows:
confidence-based performance estimation, as in J. Kivimäki et al., "Performance Estimation in Binary Classification
Using Calibrated Confidence", 2025 (arXiv:2505.05295). The probabilities are calibrated by a temperature: C. Guo et al.,
"On Calibration of Modern Neural Networks", ICML 2017, section 4.2. It is fitted at export, and here found anew on
answers whose labels are known, so that these are as sure as they are right.

The interval holds what chance does to the texts of a window, and how surely the temperature is known. It does not hold
that a model may be wrong about itself on texts of another kind: then the estimate is as good as its probabilities
(J. Białek et al., "Estimating Model Performance Under Covariate Shift Without Labels", NeurIPS 2025, on by how much).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import softmax

from storage.tables import Figures

DRAWS = 400
"""Of labels for a window, from which the interval is taken."""
COVERAGE = 0.95
_SEED = 0
_LEAST_PROBABILITY = 1e-6
_LEAST_INVERSE, _LARGEST_INVERSE = 0.1, 4.0
"""Of a temperature, as `fit_temperature` bounds it."""
_STEP = 0.01
_LEAST_SLOPE = 0.01

Probabilities = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Calibration:
    """How the probabilities that a model gives are to be read."""

    inverse_temperature: float
    deviation: float
    """Its standard error."""

    def apply(self, probabilities: Probabilities, deviations: float = 0.0) -> Probabilities:
        """Probabilities [texts, labels] by a temperature so many standard errors from the fitted one."""
        inverse = self.inverse_temperature + deviations * self.deviation
        inverse = min(max(inverse, _LEAST_INVERSE), _LARGEST_INVERSE)
        calibrated: Probabilities = softmax(inverse * _logs(probabilities), axis=1)
        return calibrated


@dataclass(frozen=True)
class Estimate:
    """A figure with the interval that holds it with `COVERAGE`."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """As commands and events tell it."""
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True)
class EstimatedQuality:
    """What is estimated of the answers to a set of texts."""

    texts: int
    accuracy: Estimate
    macro_f1: Estimate
    """Over the labels that are expected among the texts."""
    f1_by_label: dict[str, Estimate]

    def figures(self) -> Figures:
        """For the result of a check: each figure with the ends of its interval."""

        def told(estimate: Estimate) -> list[float]:
            return [estimate.value, estimate.low, estimate.high]

        return {
            "texts": self.texts,
            "accuracy": told(self.accuracy),
            "macro_f1": told(self.macro_f1),
            "f1_by_label": {label: told(f1) for label, f1 in self.f1_by_label.items()},
        }


def calibrate(probabilities: Probabilities, targets: npt.NDArray[np.integer]) -> Calibration:
    """Find the temperature by which answers [texts, labels] with known labels [texts] are as sure as they are right.

    That is, by which the mean probability of their labels is their accuracy. The temperature of the least log loss, by
    which the model is exported, leaves a difference of a point or two where the model errs in more than its sharpness.
    """
    logs = _logs(probabilities)
    is_right = probabilities.argmax(axis=1) == targets
    accuracy = float(is_right.mean())

    def excess(inverse: float) -> float:
        return float(softmax(inverse * logs, axis=1).max(axis=1).mean()) - accuracy

    low, high = excess(_LEAST_INVERSE), excess(_LARGEST_INVERSE)
    if low >= 0 or high <= 0:
        inverse = _LEAST_INVERSE if low >= 0 else _LARGEST_INVERSE
    else:
        inverse = float(brentq(excess, _LEAST_INVERSE, _LARGEST_INVERSE, xtol=1e-4))
    slope = (excess(inverse + _STEP) - excess(inverse - _STEP)) / (2 * _STEP)
    # By a text that would be wrong and one that would be right: even where all are right, the accuracy is not sure.
    smoothed = (is_right.sum() + 1) / (len(targets) + 2)
    return Calibration(inverse, float((smoothed * (1 - smoothed) / len(targets)) ** 0.5 / max(slope, _LEAST_SLOPE)))


def estimate(probabilities: Probabilities, labels: tuple[str, ...], calibration: Calibration) -> EstimatedQuality:
    """Estimate how good the answers to texts are whose `probabilities` [texts, labels] the model gave."""
    predicted = probabilities.argmax(axis=1)
    count = len(labels)
    calibrated = calibration.apply(probabilities)
    expected = np.zeros((count, count))
    for label in range(count):
        expected[:, label] = calibrated[predicted == label].sum(axis=0)
    occurs = expected.sum(axis=1) >= min(1.0, len(predicted) / count / 2)
    random = np.random.default_rng(_SEED)
    drawn = []
    for deviations in random.standard_normal(DRAWS):
        cumulated = calibration.apply(probabilities, deviations).cumsum(axis=1)
        right = (cumulated[:, :-1] < random.random((len(predicted), 1))).sum(axis=1)
        confusion = np.bincount(right * count + predicted, minlength=count * count).reshape(count, count)
        drawn.append(_measures(confusion.astype(float), occurs))
    tail = 50 * (1 - COVERAGE)
    ends = np.percentile(drawn, (tail, 100 - tail), axis=0)
    accuracy, macro_f1, *f1 = (
        Estimate(float(value), float(low), float(high))
        for value, low, high in zip(_measures(expected, occurs), *ends, strict=True)
    )
    return EstimatedQuality(len(predicted), accuracy, macro_f1, dict(zip(labels, f1, strict=True)))


def _measures(confusion: npt.NDArray[np.floating], occurs: npt.NDArray[np.bool_]) -> list[float]:
    """Accuracy, macro F1 and the F1 of each label, of a confusion matrix whose rows are the right labels."""
    right = np.diag(confusion)
    f1 = 2 * right / np.maximum(confusion.sum(axis=0) + confusion.sum(axis=1), 1e-12)
    return [right.sum() / confusion.sum(), f1[occurs].mean(), *f1]


def _logs(probabilities: Probabilities) -> Probabilities:
    logs: Probabilities = np.log(np.maximum(probabilities, _LEAST_PROBABILITY))
    return logs
