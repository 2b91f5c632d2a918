"""Evaluates a classifier: accuracy, F1, confusion matrix and calibration.

The gateway imports this module, and its image has no SciPy: only the functions for training import that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from common.settings import Settings
from common.wording import counted

CALIBRATION_BINS = 15
"""Number of bins of the calibration error, as in Guo et al. (2017)."""

LARGEST_LOSS = 0.01
"""Largest accepted loss of accuracy or macro F1 against another model, whether or not it could be chance."""

TEMPERATURES = (0.25, 10.0)
"""Bounds of the temperature. Without them, texts without errors would lead to 0."""
PRIOR = 2.0
"""Penalty of the temperature's squared logarithm, in units of one text's log loss: a normal prior with a deviation of
0.5. It keeps the temperature near 1 if few texts are held out: three right ones would lead to the lower bound. For
hundreds of texts it changes nothing that shows."""

Scores = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Evaluation:
    """Results of one classifier on one set of texts."""

    texts: int
    accuracy: float
    macro_f1: float
    f1_by_label: dict[str, float]
    calibration_error: float
    """Expected calibration error, from 0 (perfectly calibrated) to 1."""
    confusion: list[list[int]]
    """Rows are the right labels, columns the predicted ones, both in the order of the labels."""

    def summary(self, temperature: float) -> str:
        """Return the results on the validation texts in a sentence; `temperature` calibrates the scores."""
        return (
            f"Validation ({counted(self.texts, 'text')}): accuracy {self.accuracy:.4f}, "
            f"macro F1 {self.macro_f1:.4f}, calibration error "
            f"{self.calibration_error:.3f} (temperature {temperature:.2f})."
        )

    def metrics(self) -> dict[str, float]:
        """The results as flat names and numbers, for MLflow and `bundle.json`."""
        figures = asdict(self)
        by_label = {f"f1_{label}": f1 for label, f1 in figures.pop("f1_by_label").items()}
        del figures["confusion"]
        return figures | by_label


def under_thresholds(
    settings: Settings, figures: Mapping[str, float], where: str, before: Mapping[str, float] | None = None
) -> list[str]:
    """Return which of `figures`, by the names of `Evaluation`, are under their threshold, in words.

    If the figures `before` of another model are given, a figure that was under the threshold as well is left out,
    unless it has fallen by more than `LARGEST_LOSS`.
    """
    problems = []
    for name, least in (("accuracy", settings.min_accuracy), ("macro_f1", settings.min_macro_f1)):
        value, was = figures[name], before[name] if before else 1.0
        if value < least and (was >= least or value < was - LARGEST_LOSS):
            told = "macro F1" if name == "macro_f1" else name
            problems.append(f"{told} on {where} is {value:.4f}, under {least:g} ({figures['texts']:,.0f} texts)")
    return problems


def targets_of(names: Sequence[str], labels: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Return for each name of a label its index in `labels`."""
    index = {label: position for position, label in enumerate(labels)}
    return np.array([index[name] for name in names], dtype=np.int64)


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
    f1 = _f1_by_label(predicted, targets, len(labels))
    return Evaluation(
        texts=len(targets),
        accuracy=float(np.mean(predicted == targets)),
        macro_f1=macro_f1(predicted, targets),
        f1_by_label={label: float(value) for label, value in zip(labels, f1, strict=True)},
        calibration_error=expected_calibration_error(confidence, predicted == targets),
        confusion=_confusion(predicted, targets, len(labels)),
    )


def macro_f1(predicted: npt.NDArray[np.integer], targets: npt.NDArray[np.integer]) -> float:
    """Mean F1 over the labels that occur among the targets; a prediction below 0 is not a label, and so wrong.

    The figure is scikit-learn's, without its checks, which would take most of the time of thousands of resamples.
    """
    occur = np.bincount(targets) > 0
    return float(_f1_by_label(predicted, targets, len(occur))[: len(occur)][occur].mean())


def f1_scores(right: npt.ArrayLike, asked: npt.ArrayLike, answered: npt.ArrayLike) -> Scores:
    """F1 by how many texts were answered rightly with a label, have it, and were answered with it; 0 without any."""
    scores: Scores = 2 * np.asarray(right) / np.maximum(np.add(asked, answered), 1e-12)
    return scores


def _f1_by_label(predicted: npt.NDArray[np.integer], targets: npt.NDArray[np.integer], labels: int) -> Scores:
    answered = np.bincount(predicted[predicted >= 0], minlength=labels)
    right = np.bincount(targets[predicted == targets], minlength=len(answered))
    return f1_scores(right, np.bincount(targets, minlength=len(answered)), answered)


def _confusion(predicted: npt.NDArray[np.integer], targets: npt.NDArray[np.integer], labels: int) -> list[list[int]]:
    known = predicted >= 0
    cells = np.bincount(targets[known] * labels + predicted[known], minlength=labels**2)
    rows: list[list[int]] = cells.reshape(labels, labels).tolist()
    return rows


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
    """The temperature T that minimises the log loss of softmax(`logits` / T) on `targets`, with a prior around 1.

    It changes the confidence, and no label. Temperature scaling: Guo et al. 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    def penalised_loss(temperature: float) -> float:
        log_probabilities = log_softmax(logits / temperature, axis=1)
        log_loss = -log_probabilities[np.arange(len(targets)), targets].mean()
        return float(log_loss + PRIOR * np.log(temperature) ** 2 / len(targets))

    return float(minimize_scalar(penalised_loss, bounds=TEMPERATURES, method="bounded").x)


def logits_of(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return logits of probabilities [texts, labels], up to a constant of each text, which the softmax takes away."""
    return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))


def calibrated(logits: npt.NDArray[np.floating], temperature: float) -> Scores:
    """Return the probabilities, [texts, labels], of logits that are divided by the temperature."""
    from scipy.special import softmax

    probabilities: Scores = softmax(logits / temperature, axis=1)
    return probabilities


def at_bound(temperature: float) -> str:
    """Return what it means for the scores if `fit_temperature` stopped at a bound; empty if it did not."""
    lowest, highest = TEMPERATURES
    if temperature < 1.01 * lowest:
        return (
            f"The temperature stopped at its bound {lowest:g}: the texts that it is fitted on have few errors or low "
            "scores, so scores may not match how often labels are right"
        )
    if temperature > 0.99 * highest:
        return f"The temperature stopped at its bound {highest:g}: scores are higher than labels are often right"
    return ""
