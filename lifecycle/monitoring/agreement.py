"""Estimates accuracy without labels from how often a second, simple model gives the same label.

Two models that learnt the same task in different ways agree less where the task changes. The chance-corrected agreement
(kappa: J. Cohen, "A Coefficient of Agreement for Nominal Scales", Educational and Psychological Measurement 20(1),
1960) is compared with that on known texts, and the accuracy beyond chance falls in proportion. That agreement and
accuracy fall together is an observation, not a law: C. Baek et al., "Agreement-on-the-Line: Predicting the Performance
of Neural Networks under Distribution Shift", NeurIPS 2022 (arXiv:2206.13089), and A. Mehra et al. for fine-tuned
language models (arXiv:2404.01542). The second model here is the baseline of `trainer.baseline`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.integer]
_LEAST_KAPPA = 0.1
"""With less agreement on known texts, the second model says nothing about the first."""


@dataclass(frozen=True)
class Agreement:
    """The agreement and the accuracy on known texts, both beyond chance."""

    kappa: float
    skill: float
    """Accuracy beyond chance: 0 is guessing, 1 is always right."""
    shares: npt.NDArray[np.floating]
    """[labels], the share of each right label"""

    @classmethod
    def fit(
        cls, predicted: Indices, second: Indices, targets: Indices, shares: npt.NDArray[np.floating]
    ) -> "Agreement | None":
        """Fit to labels of known texts, [known texts] each; `shares` [labels] are those of the right labels.

        Returns None if the two models hardly agree.
        """
        kappa = _kappa(np.mean(predicted == second), _chance(predicted, np.bincount(second, minlength=len(shares))))
        skill = _kappa(np.mean(predicted == targets), _chance(predicted, shares))
        return cls(kappa, skill, shares) if kappa >= _LEAST_KAPPA else None

    def accuracy(self, predicted: Indices, second: Indices) -> float:
        """Estimate the accuracy of the labels `predicted` [texts]; the second model gives `second` [texts]."""
        kappa = _kappa(
            np.mean(predicted == second), _chance(predicted, np.bincount(second, minlength=len(self.shares)))
        )
        chance = _chance(predicted, self.shares)
        return float(np.clip(chance + (1 - chance) * self.skill * kappa / self.kappa, 0, 1))

    @property
    def scale(self) -> float:
        """Change of the estimated accuracy for a change of the agreement."""
        return self.skill / self.kappa


def _chance(predicted: Indices, counts: npt.NDArray[np.floating] | Indices) -> float:
    """Return how often labels agree that are drawn independently: as `predicted`, and by `counts` [labels]."""
    return float(np.bincount(predicted, minlength=len(counts)) @ counts / len(predicted) / counts.sum())


def _kappa(agreement: float | np.floating, chance: float) -> float:
    return (float(agreement) - chance) / max(1e-9, 1 - chance)
