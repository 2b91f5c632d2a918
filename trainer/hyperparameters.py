"""Chooses the hyperparameters of a training: the settings', and where they are unset, what fits encoder and data."""

import math
from dataclasses import dataclass

from common.settings import Settings

EPOCHS = 2
"""Epochs if the texts are enough for `LEAST_STEPS`."""
LEAST_STEPS = 200
"""Minimum number of training steps: fewer texts are learnt for more epochs. Small files need more epochs than usual
rather than another rate (Mosbach et al. 2021, "On the Stability of Fine-tuning BERT"; Zhang et al. 2021, "Revisiting
Few-sample BERT Fine-tuning")."""
BASE_HIDDEN_SIZE = 768
BASE_LEARNING_RATE = 5e-5
"""Peak learning rate for an encoder of `BASE_HIDDEN_SIZE`, as in the paper on BERT."""
HIGHEST_LEARNING_RATE = 3e-4
"""Highest rate that Turc et al. (2019) tried for BERT models from 128 to 768 units."""
WARMUP_RATIO = 0.06
WEIGHT_DECAY = 0.01
EVALUATIONS_PER_EPOCH = 2
MOST_EVALUATIONS = 8
"""Maximum number of evaluations in a training of more than four epochs. Each writes a checkpoint."""


@dataclass(frozen=True)
class Hyperparameters:
    """What decides how a training runs, besides the encoder, the texts and the seed."""

    learning_rate: float
    """Peak learning rate, after warm-up."""
    batch_size: int
    """Texts per training step, over all processes."""
    steps_per_epoch: int
    steps: int
    """Total number of training steps, unless the training stops early."""
    may_stop_early: bool
    """False if the epochs were raised for few texts: then the held-out texts are too few to tell when to stop."""

    @property
    def epochs(self) -> int:
        """Number of begun epochs."""
        return math.ceil(self.steps / self.steps_per_epoch)

    @property
    def evaluate_every(self) -> int:
        """Number of steps between two evaluations."""
        half_epoch = min(self.steps_per_epoch // EVALUATIONS_PER_EPOCH, math.ceil(self.steps / 2))
        return max(1, half_epoch, self.steps // MOST_EVALUATIONS)


def choose_hyperparameters(settings: Settings, hidden_size: int, texts: int) -> Hyperparameters:
    """Return the hyperparameters for an encoder of `hidden_size` units and so many `texts` to learn from."""
    steps_per_epoch = math.ceil(texts / settings.batch_size)
    epochs = settings.epochs or max(EPOCHS, math.ceil(LEAST_STEPS / steps_per_epoch))
    return Hyperparameters(
        learning_rate=settings.learning_rate or usual_learning_rate(hidden_size),
        batch_size=settings.batch_size,
        steps_per_epoch=steps_per_epoch,
        steps=epochs * steps_per_epoch,
        may_stop_early=settings.epochs is not None or epochs == EPOCHS,
    )


def usual_learning_rate(hidden_size: int) -> float:
    """Return the peak learning rate for an encoder of `hidden_size` units, to two digits.

    It falls with the square of the size: 2e-4 for the packaged encoder (384), 5e-5 for BERT-base (768), and 2.8e-5 for
    BERT-large (1,024).
    """
    rate = min(HIGHEST_LEARNING_RATE, BASE_LEARNING_RATE * (BASE_HIDDEN_SIZE / hidden_size) ** 2)
    return float(f"{rate:.1e}")
