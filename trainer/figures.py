"""Draws a version's results on the validation texts: confusion matrix, reliability and ROC curves."""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, roc_auc_score, roc_curve

from common.wording import shortened
from trainer.evaluation import CALIBRATION_BINS, Scores

MOST_DRAWN_LABELS = 20
"""Maximum labels that are drawn. A confusion matrix of 20 labels takes a second and 120 MB, 40 four times both, and
nobody can read 1,600 cells."""
_LONGEST_DRAWN_LABEL = 30
"""Maximum characters of a label in a drawing; more would leave no room for the rest."""
_LONGEST_HORIZONTAL_LABEL = 10
"""Longer labels of columns are drawn vertically, or neighbours would overlap."""

Targets = npt.NDArray[np.integer]


def figures(
    confusion: list[list[int]], probabilities: Scores, targets: Targets, labels: Sequence[str]
) -> Iterator[tuple[str, Figure]]:
    """Draw each figure for up to `MOST_DRAWN_LABELS` labels, and return it with the name of its file.

    `probabilities` are [texts, labels], and `targets` [texts] are indices into `labels`.
    """
    shown = [shortened(label, _LONGEST_DRAWN_LABEL) for label in labels]
    with warnings.catch_warnings():
        # Names in scripts that matplotlib's font lacks are drawn as boxes; the JSON files contain them.
        warnings.filterwarnings("ignore", "Glyph|Matplotlib currently does not support")
        if len(labels) <= MOST_DRAWN_LABELS:
            yield "confusion_matrix.png", _confusion(confusion, shown)
            yield "roc_curves.png", _roc(probabilities, targets, shown)
        yield "reliability.png", _reliability(probabilities, targets)


def _confusion(confusion: list[list[int]], labels: list[str]) -> Figure:
    """Draw a confusion matrix with the number of texts in each cell."""
    size = 2.6 + 0.9 * len(labels)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    rotation = "vertical" if max(map(len, labels)) > _LONGEST_HORIZONTAL_LABEL else "horizontal"
    display = ConfusionMatrixDisplay(np.array(confusion), display_labels=labels)
    display.plot(ax=axes, cmap="Blues", values_format=",d", xticks_rotation=rotation)
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_parse_math(False)  # a label such as $$ is no formula
    return figure


def _roc(probabilities: Scores, targets: Targets, labels: list[str]) -> Figure:
    """Draw each label's ROC curve against the others, with the area under it; labels without texts are left out."""
    figure, axes = _square("false positive rate", "true positive rate")
    for index, label in enumerate(labels):
        is_right = targets == index
        if 0 < is_right.sum() < len(targets):
            area = roc_auc_score(is_right, probabilities[:, index])
            x, y, _ = roc_curve(is_right, probabilities[:, index])
            axes.plot(x, y, label=f"{label} ({area:.4f})")
    if axes.lines[1:]:
        for text in axes.legend(title="label (area)", fontsize="small").get_texts():
            text.set_parse_math(False)
    return figure


def _reliability(probabilities: Scores, targets: Targets) -> Figure:
    """Draw how often labels are right by their score, in the bins of the calibration error."""
    confidence, is_right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    found = np.unique(bins)
    figure, axes = _square("mean score of the predicted label", "share of right labels")
    axes.plot([confidence[bins == one].mean() for one in found], [is_right[bins == one].mean() for one in found], "o-")
    return figure


def _square(x: str, y: str) -> tuple[Figure, Axes]:
    """Return axes from 0 to 1 in both directions, with the diagonal."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color="gray")
    axes.set(xlabel=x, ylabel=y, xlim=(0, 1.01), ylim=(0, 1.01))
    return figure, axes
