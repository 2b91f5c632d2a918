"""Compares live texts, their predictions and feedback with the training and validation data."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from lifecycle.gates.batch_predict import Answers
from lifecycle.gates.evaluation_data import EvaluationData
from lifecycle.monitoring.drift import Shift, TextDrift, feedback_shift, label_shift, length_shift, text_drift
from lifecycle.monitoring.live_quality import LEAST_TEXTS
from storage.tables import Figures, SampledPrediction
from trainer.dataset import Dataset

MOST_KNOWN_TEXTS = 5_000
_SEED = 0


@dataclass(frozen=True)
class LiveDrift:
    """The result for each kind of drift for which there were enough data."""

    found: dict[str, TextDrift | Shift]

    @property
    def alarms(self) -> dict[str, str]:
        """The messages of the alarms, by kind of drift."""
        return {kind: item.alarm for kind, item in self.found.items() if item.alarm}

    def figures(self) -> Figures:
        """Return the figures for the result of a check."""
        return {kind: item.figures() for kind, item in self.found.items()}


def live_drift(
    dataset: Dataset, data: EvaluationData, answers: Answers, sample: Sequence[SampledPrediction]
) -> LiveDrift:
    """Test for all kinds of drift, with the deployed version's `answers` to `data` and its newest live texts, `sample`.

    For texts, labels and lengths, each live text counts once, however often it was sent. Otherwise a text that a
    machine sends each minute would be most of them. Texts are compared only if the sample contains them.
    """
    found: dict[str, TextDrift | Shift | None] = {}
    live = list({row.text_hash: row for row in sample}.values())
    if len(live) >= LEAST_TEXTS:
        texts = [row.text for row in live if row.text is not None]
        if len(texts) >= LEAST_TEXTS:
            found["texts"] = text_drift(known_texts(dataset), texts)
        found["labels"] = label_shift(answers.labels[: len(data.val.texts)], [row.label for row in live])
        found["lengths"] = length_shift([len(text.split()) for text in data.val.texts], [row.words for row in live])
    is_wrong = answers.indices(data.labels) != data.targets()
    found["feedback"] = feedback_shift(is_wrong[len(data.val.texts) :])
    return LiveDrift({kind: item for kind, item in found.items() if item is not None})


def known_texts(dataset: Dataset) -> list[str]:
    """Return a random sample of the training and validation texts, the same each time."""
    known = [*dataset.train.texts, *dataset.val.texts]
    return random.Random(_SEED).sample(known, min(len(known), MOST_KNOWN_TEXTS))
