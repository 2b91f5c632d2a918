"""How good a classifier is: accuracy, F1, confusion, and whether its scores can be believed."""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

CALIBRATION_BINS = 15
"""Bins of the calibration error, as in Guo et al. (2017)."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of one classifier on one set of texts."""

    texts: int
    accuracy: float
    macro_f1: float
    f1_by_label: dict[str, float]
    calibration_error: float
    """Expected calibration error, 0 (scores are honest) to 1."""
    confusion: list[list[int]]
    """Rows are the right labels, columns the predicted ones, both in the order of the labels."""

    def metrics(self) -> dict[str, float]:
        """The figures as flat names and numbers, as MLflow and `bundle.json` want them."""
        figures = asdict(self)
        by_label = {f"f1_{label}": f1 for label, f1 in figures.pop("f1_by_label").items()}
        del figures["confusion"]
        return figures | by_label


def evaluate(
    probabilities: npt.NDArray[np.floating], targets: npt.NDArray[np.integer], labels: tuple[str, ...]
) -> Evaluation:
    """Evaluate `probabilities` [texts, labels] against `targets` [texts], indices into `labels`."""
    return evaluate_answers(probabilities.argmax(axis=1), probabilities.max(axis=1), targets, labels)


def evaluate_answers(
    predicted: npt.NDArray[np.integer],
    confidence: npt.NDArray[np.floating],
    targets: npt.NDArray[np.integer],
    labels: tuple[str, ...],
) -> Evaluation:
    """Evaluate predicted labels and targets, indices into `labels`, and the predicted labels' probabilities; [texts].

    Macro F1 is the mean over the labels that occur among the targets.
    """
    indices = list(range(len(labels)))
    f1 = f1_score(targets, predicted, labels=indices, average=None, zero_division=0)
    return Evaluation(
        texts=len(targets),
        accuracy=float(accuracy_score(targets, predicted)),
        macro_f1=macro_f1(predicted, targets),
        f1_by_label={label: float(value) for label, value in zip(labels, f1, strict=True)},
        calibration_error=expected_calibration_error(confidence, predicted == targets),
        confusion=confusion_matrix(targets, predicted, labels=indices).tolist(),
    )


def macro_f1(predicted: npt.NDArray[np.integer], targets: npt.NDArray[np.integer]) -> float:
    """Mean F1 over the labels that occur among the targets; of a label that nobody asked for, none is right."""
    return float(f1_score(targets, predicted, labels=np.unique(targets), average="macro", zero_division=0))


def expected_calibration_error(confidence: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_]) -> float:
    """Mean distance between confidence and accuracy over equal-width bins, weighted by their texts; both [texts].

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = [
        abs(confidence[bins == index].mean() - correct[bins == index].mean()) * (bins == index).sum()
        for index in np.unique(bins)
    ]
    return float(np.sum(gaps) / len(confidence))


def fit_temperature(logits: npt.NDArray[np.floating], targets: npt.NDArray[np.integer]) -> float:
    """The temperature T for which softmax(`logits` / T) has the least log loss on `targets`.

    It changes no label, only the confidence. Temperature scaling, Guo et al. 2017, section 4.2.
    The bounds keep a validation set without a single error from asking for T = 0.
    """

    def log_loss(temperature: float) -> float:
        log_probabilities = log_softmax(logits / temperature, axis=1)
        return float(-log_probabilities[np.arange(len(targets)), targets].mean())

    return float(minimize_scalar(log_loss, bounds=(0.25, 10.0), method="bounded").x)
