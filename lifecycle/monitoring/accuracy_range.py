"""Makes a range of an estimate without labels, by two more estimates that rest on other assumptions.

Average confidence (`estimation`) is right as long as the model is as calibrated on live texts as on known ones. Optimal
transport (`transport`) assumes that the labels have the same shares, and the agreement with a second model
(`agreement`) that both models get worse together. Where all agree within chance, the range is the interval of the
first. Where one differs, nobody knows which is right, and all of them may be too high: the range then reaches as far
below the lowest estimate as the estimates lie apart. `python -m benchmarks.drift` measures how often it is right.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lifecycle.monitoring.agreement import Agreement
from lifecycle.monitoring.estimation import (
    Calibration,
    Estimate,
    EstimatedQuality,
    Probabilities,
    calibrate,
    estimate,
)
from lifecycle.monitoring.transport import Transport

CONFIDENCE = "average confidence"
TRANSPORT = "optimal transport"
AGREEMENT = "agreement with the baseline"
_DEVIATIONS = 2.5
"""Standard errors by which an estimate must differ from average confidence to count as a disagreement."""
_QUANTILE = 1.64
"""Standard errors on each side of an estimate: 90 % of a normal distribution."""

Indices = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Estimator:
    """Everything that the known texts say about one version."""

    labels: tuple[str, ...]
    calibration: Calibration
    transport: Transport
    agreement: Agreement | None
    """None without a baseline, or if it says nothing about the version."""
    texts: int
    """Number of known texts."""
    accuracy: float
    """Accuracy on the known texts."""

    @classmethod
    def fit(
        cls, labels: tuple[str, ...], probabilities: Probabilities, targets: Indices, second: Indices | None
    ) -> "Estimator":
        """Fit to predictions [known texts, labels] whose right labels are `targets` [known texts].

        `second` [known texts] are the baseline's labels. A target of -1 is none of the labels.
        """
        calibration = calibrate(probabilities, targets)
        predicted = probabilities.argmax(axis=1)
        counts = np.bincount(targets[targets >= 0], minlength=len(labels))
        shares = counts / max(1, int(counts.sum()))
        return cls(
            labels,
            calibration,
            Transport.fit(calibration.apply(probabilities), targets, shares),
            None if second is None else Agreement.fit(predicted, second, targets, shares),
            len(targets),
            float(np.mean(predicted == targets)),
        )

    def estimate(self, probabilities: Probabilities, second: Indices | None) -> EstimatedQuality:
        """Estimate the quality of predictions [texts, labels]; `second` [texts] are the baseline's labels."""
        quality = estimate(probabilities, self.labels, self.calibration)
        # The same for all: accuracy is a share of these texts, compared with a share of the known ones.
        error = (self.accuracy * (1 - self.accuracy) * (1 / quality.texts + 1 / self.texts)) ** 0.5
        others = {TRANSPORT: (self.transport.accuracy(self.calibration.apply(probabilities)), error)}
        if self.agreement is not None and second is not None:
            value = self.agreement.accuracy(probabilities.argmax(axis=1), second)
            others[AGREEMENT] = (value, error * max(1.0, self.agreement.scale))
        methods = {CONFIDENCE: quality.accuracy.value, **{name: value for name, (value, _) in others.items()}}
        accuracy = quality.accuracy
        far = [(value, error) for value, error in others.values() if abs(value - accuracy.value) > _DEVIATIONS * error]
        if not far:
            return replace(quality, methods=methods)
        values = [accuracy.value, *(value for value, _ in far)]
        apart = max(values) - min(values)
        low = min(accuracy.low, *(value - _QUANTILE * error - apart for value, error in far))
        high = max(accuracy.high, *(value + _QUANTILE * error for value, error in far))
        widened = Estimate(accuracy.value, max(0.0, low), min(1.0, high))
        return replace(
            quality,
            accuracy=widened,
            macro_f1=_moved(quality.macro_f1, widened.low - accuracy.low, widened.high - accuracy.high),
            methods=methods,
            disagree=True,
        )


def _moved(figure: Estimate, low: float, high: float) -> Estimate:
    """Return the figure with the ends of its interval moved."""
    return Estimate(figure.value, max(0.0, figure.low + low), min(1.0, figure.high + high))
