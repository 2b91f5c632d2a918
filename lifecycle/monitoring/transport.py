"""Estimates accuracy without labels by optimal transport, which does not take the model's word for its confidence.

Average confidence believes each probability. Here the labels are given to the texts in the shares that they have among
known texts, as cheaply as possible: a label costs a text what its probability lacks to 1. If a model predicts a label
too often on a new kind of text, some of these texts must take another label, and cost much. Texts that cost more than
a threshold count as wrong; the threshold is the one that is right for the known texts. This is COTT of Y. Lu et al.,
"Characterizing Out-of-Distribution Error via Optimal Transport", NeurIPS 2023 (arXiv:2305.15640).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog
from scipy.sparse import coo_array

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Transport:
    """What is needed of the known texts: the share of each label, [labels], and the threshold of the costs."""

    shares: Floats
    threshold: float

    @classmethod
    def fit(cls, probabilities: Floats, targets: npt.NDArray[np.integer], shares: Floats) -> "Transport":
        """Fit to predictions [known texts, labels] whose right labels are `targets` [known texts], of these shares."""
        costs = transport_costs(probabilities, shares)
        return cls(shares, float(np.quantile(costs, np.mean(probabilities.argmax(axis=1) == targets))))

    def accuracy(self, probabilities: Floats) -> float:
        """Estimate the accuracy of predictions [texts, labels]."""
        return float(np.mean(transport_costs(probabilities, self.shares) <= self.threshold))


def transport_costs(probabilities: Floats, shares: Floats) -> npt.NDArray[np.float64]:
    """Return the cost [texts] of each text in the cheapest assignment of labels to texts.

    `probabilities` are [texts, labels]; `shares` [labels], of sum 1, are the shares of the texts that get each label. A
    text may be split between labels.
    """
    texts, labels = probabilities.shape
    costs = 1.0 - probabilities.astype(np.float64)
    cells = np.arange(texts * labels)
    rows = np.concatenate([cells // labels, texts + cells % labels])
    sums = coo_array((np.ones(2 * len(cells)), (rows, np.tile(cells, 2))), (texts + labels, len(cells))).tocsr()
    totals = np.concatenate([np.ones(texts), shares / shares.sum() * texts])
    # The last sum follows from the others; without it, rounding cannot make them contradict each other.
    found = linprog(costs.ravel(), A_eq=sums[:-1], b_eq=totals[:-1], bounds=(0, None), method="highs")
    spent: npt.NDArray[np.float64] = (found.x.reshape(texts, labels) * costs).sum(axis=1)
    return spent
