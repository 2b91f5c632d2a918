"""Estimates the quality of predictions without labels, from the model's probabilities.

If a calibrated model gives its labels a probability of 0.9, nine of ten are right. So the mean of these probabilities
is the expected accuracy. The probabilities of all labels are the expected confusion matrix, from which F1 follows:
confidence-based performance estimation, as in J. Kivimäki et al., "Performance Estimation in Binary Classification
Using Calibrated Confidence", 2025 (arXiv:2505.05295). The probabilities are calibrated by a temperature: C. Guo et al.,
"On Calibration of Modern Neural Networks", ICML 2017, section 4.2. It is fitted at export, and fitted again here on
predictions whose right labels are known, so that their mean confidence is their accuracy.

The interval includes the effect of chance on the texts of a window, and the uncertainty of the temperature. It does not
include wrong confidence on other kinds of texts: the estimate is only as good as the model's probabilities on them
(J. Białek et al., "Estimating Model Performance Under Covariate Shift Without Labels", NeurIPS 2025, on by how much).
`accuracy_range` widens it where other methods disagree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import softmax

from storage.tables import Figures
from trainer.evaluation import f1_scores

DRAWS = 400
"""Number of random draws of a window's labels, from which the interval is computed."""
COVERAGE = 0.95
_SEED = 0
_LEAST_PROBABILITY = 1e-6
_LEAST_INVERSE, _LARGEST_INVERSE = 0.1, 4.0
"""Bounds of the inverse temperature, the same as in `fit_temperature`."""
_STEP = 0.01
_LEAST_SLOPE = 0.01

Probabilities = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Calibration:
    """A correction of a model's probabilities by a temperature."""

    inverse_temperature: float
    deviation: float
    """Standard error of the inverse temperature."""

    def apply(self, probabilities: Probabilities, deviations: float = 0.0) -> Probabilities:
        """Calibrate probabilities [texts, labels], `deviations` standard errors from the fitted inverse temperature."""
        inverse = self.inverse_temperature + deviations * self.deviation
        inverse = min(max(inverse, _LEAST_INVERSE), _LARGEST_INVERSE)
        calibrated: Probabilities = softmax(inverse * _logs(probabilities), axis=1)
        return calibrated


@dataclass(frozen=True)
class Estimate:
    """An estimate with the interval that includes the true value with probability `COVERAGE`."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Format the estimate for commands and events."""
        return f"{self.value:.4f} ({self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True)
class EstimatedQuality:
    """Estimated quality of the predictions for a set of texts."""

    texts: int
    accuracy: Estimate
    macro_f1: Estimate
    """Mean F1 over the labels that are expected among the texts."""
    f1_by_label: dict[str, Estimate]
    methods: Mapping[str, float] = field(default_factory=dict)
    """The accuracy by each method (`accuracy_range`)."""
    disagree: bool = False
    """True if the methods differ by more than chance. The intervals of accuracy and macro F1 are then wider."""

    def figures(self) -> Figures:
        """Return each figure with the ends of its interval, for the result of a check."""

        def with_interval(estimate: Estimate) -> list[float]:
            return [estimate.value, estimate.low, estimate.high]

        return {
            "texts": self.texts,
            "accuracy": with_interval(self.accuracy),
            "macro_f1": with_interval(self.macro_f1),
            "f1_by_label": {label: with_interval(f1) for label, f1 in self.f1_by_label.items()},
            "methods": dict(self.methods),
            "disagree": self.disagree,
        }


def calibrate(probabilities: Probabilities, targets: npt.NDArray[np.integer]) -> Calibration:
    """Fit the temperature for predictions [texts, labels] whose right labels [texts] are known.

    At this temperature, the mean probability of the predicted labels is their accuracy. The temperature of the least
    log loss, used at export, leaves a difference of a point or two if more than the model's sharpness is wrong.
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
    # One wrong and one right text are added: even if all predictions are right, the accuracy is not certain.
    smoothed = (is_right.sum() + 1) / (len(targets) + 2)
    return Calibration(inverse, float((smoothed * (1 - smoothed) / len(targets)) ** 0.5 / max(slope, _LEAST_SLOPE)))


def estimate(probabilities: Probabilities, labels: tuple[str, ...], calibration: Calibration) -> EstimatedQuality:
    """Estimate the quality of predictions from the model's `probabilities` [texts, labels]."""
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
    """Return accuracy, macro F1 and the F1 of each label for a confusion matrix whose rows are the right labels."""
    right = np.diag(confusion)
    f1 = f1_scores(right, confusion.sum(axis=1), confusion.sum(axis=0))
    return [right.sum() / confusion.sum(), f1[occurs].mean(), *f1]


def _logs(probabilities: Probabilities) -> Probabilities:
    logs: Probabilities = np.log(np.maximum(probabilities, _LEAST_PROBABILITY))
    return logs
