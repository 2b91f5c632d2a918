"""Warnings about a model that has learnt too little, with likely causes and what to try."""

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.evaluation import Evaluation
from trainer.suspects import FILE as SUSPECTS

FEW_STEPS = 300
FEW_TEXTS = 2_000
MANY_UNKNOWN = 0.1
"""From this share on, unknown tokens are a likely cause of a poor model."""
UNUSUAL_RATE = 2
"""A learning rate is a likely cause if it differs from the encoder's usual one by more than this factor."""
NEAR_CHANCE = 0.2
"""A model is near chance if it is at most this part of the way from a guess to no error, in accuracy and in recall."""


@dataclass(frozen=True)
class TrainingFacts:
    """The facts about a training that can explain a poor model."""

    texts: int
    """Number of training texts."""
    steps: int
    """Number of training steps."""
    learning_rate: float
    usual_learning_rate: float
    """The learning rate that is used for this encoder if the settings name none."""
    unknown: float
    """Share of unknown tokens."""

    def likely_causes(self) -> str:
        """Return the likely causes of a poor model, each with the setting to change."""
        causes = []
        if self.unknown >= MANY_UNKNOWN:
            causes.append(
                f"the encoder does not know {self.unknown:.0%} of the tokens, so choose one of this language or script "
                "(SENTIMENT_BASE_MODEL)"
            )
        if self.texts < FEW_TEXTS:
            causes.append(f"there are only {self.texts:,} training texts, so add more")
        if self.steps < FEW_STEPS:
            causes.append(f"there were only {self.steps:,} training steps, so train longer (SENTIMENT_EPOCHS)")
        if not 1 / UNUSUAL_RATE <= self.learning_rate / self.usual_learning_rate <= UNUSUAL_RATE:
            causes.append(
                f"the learning rate is {self.learning_rate:g} (SENTIMENT_LEARNING_RATE), and for this encoder "
                f"{self.usual_learning_rate:g} is usual"
            )
        return "; ".join(causes) or (
            "none of the usual ones was found, so try more epochs (SENTIMENT_EPOCHS), another learning rate "
            "(SENTIMENT_LEARNING_RATE) or another encoder (SENTIMENT_BASE_MODEL)"
        )


def near_chance(model: Evaluation, baseline: Evaluation, facts: TrainingFacts) -> str:
    """Return a warning with likely causes if the model is hardly better than a guess; empty if it is better.

    Two guesses count: always the most frequent label, for the accuracy, and any label, for the mean recall. So neither
    frequent nor rare labels alone cause the warning.
    """
    if not _is_near_chance(model):
        return ""
    texts = {label: sum(row) for label, row in zip(model.f1_by_label, model.confusion, strict=True)}
    largest = max(texts, key=lambda label: texts[label])
    told = (
        f"The model is near chance: its accuracy is {model.accuracy:.4f}, and always predicting '{largest}' has "
        f"{texts[largest] / model.texts:.4f}."
    )
    if _is_near_chance(baseline):
        told += f" The baseline is near chance too, so check whether the labels fit the texts ({SUSPECTS})."
    return f"{told} Likely causes: {facts.likely_causes()}."


def not_better(model: Mapping[str, float], baseline: Mapping[str, float], facts: TrainingFacts) -> str:
    """Return a warning with likely causes if the model's macro F1 is not above the baseline's; empty if it is, or is 1.

    `model` and `baseline` are metrics by name, as in `Evaluation.metrics`.
    """
    if model["macro_f1"] > baseline["macro_f1"] or model["macro_f1"] == 1:
        return ""
    return (
        f"The model is not better than the baseline: macro F1 {model['macro_f1']:.4f} against "
        f"{baseline['macro_f1']:.4f}, accuracy {model['accuracy']:.4f} against {baseline['accuracy']:.4f}. "
        f"Likely causes: {facts.likely_causes()}."
    )


def _is_near_chance(found: Evaluation) -> bool:
    shares = [(sum(row), row[label]) for label, row in enumerate(found.confusion) if sum(row)]
    largest = max(texts for texts, _ in shares) / found.texts
    recall = sum(right / texts for texts, right in shares) / len(shares)
    return _way(found.accuracy, largest) <= NEAR_CHANCE and _way(recall, 1 / len(shares)) <= NEAR_CHANCE


def _way(figure: float, guess: float) -> float:
    """Return how far a figure is on the way from that of a guess to 1."""
    return (figure - guess) / (1 - guess) if guess < 1 else 1.0
