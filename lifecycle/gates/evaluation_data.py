"""Evaluation data: the validation file, and the held-out feedback of trusted sources."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from common.settings import Settings
from lifecycle.gates.batch_predict import Answers
from storage.database import Database, now
from storage.feedback import LabelledText, newest_feedback, text_hash
from trainer.dataset import Dataset, LabelledTexts
from trainer.evaluation import Evaluation, evaluate_answers, under_thresholds

Results = Mapping[str, Mapping[str, float]]
"""Figures by part of the evaluation data (`validation`, `feedback`) and by name of the figure."""


@dataclass(frozen=True)
class EvaluationData:
    """Texts with their right labels, and the names of all labels."""

    labels: tuple[str, ...]
    val: LabelledTexts
    feedback: LabelledTexts
    """Held-out feedback from trusted sources, without texts of the validation file."""

    @property
    def texts(self) -> list[str]:
        """All texts: the validation file first, then the feedback."""
        return [*self.val.texts, *self.feedback.texts]

    def targets(self) -> npt.NDArray[np.int64]:
        """Return the right label of each text, as an index into `labels`."""
        index = {label: position for position, label in enumerate(self.labels)}
        return np.array([index[label] for label in (*self.val.labels, *self.feedback.labels)], dtype=np.int64)

    def evaluate(self, answers: Answers) -> dict[str, Evaluation]:
        """Evaluate predictions for all texts: on the validation file, and on the feedback if there is any."""
        predicted, targets, cut = answers.indices(self.labels), self.targets(), len(self.val.texts)
        parts = {"validation": slice(cut), "feedback": slice(cut, None)}
        return {
            name: evaluate_answers(predicted[part], answers.confidence[part], targets[part], self.labels)
            for name, part in parts.items()
            if len(targets[part])
        }

    def evaluate_all(self, answers: Answers) -> Evaluation:
        """Evaluate predictions for all texts together."""
        return evaluate_answers(answers.indices(self.labels), answers.confidence, self.targets(), self.labels)


def evaluation_data(settings: Settings, database: Database, dataset: Dataset) -> EvaluationData:
    """Return the evaluation data: the validation part of `dataset`, and current feedback from the database."""
    with database.reading() as session:
        since = now(session) - timedelta(days=settings.feedback_window_days)
    validated = {text_hash(text) for text in dataset.val.texts}
    rows = [
        row
        for row in newest_feedback(database, held_out=True, trusted=settings.trusted_sources, since=since)
        if row.label in dataset.labels and row.text_hash not in validated
    ]
    return EvaluationData(dataset.labels, dataset.val, labelled_texts(rows))


def labelled_texts(rows: Sequence[LabelledText]) -> LabelledTexts:
    """Convert rows to a list of texts and a list of labels."""
    return LabelledTexts([row.text for row in rows], [row.label for row in rows])


def shortfalls(settings: Settings, found: Results, before: Results | None = None) -> list[str]:
    """Return the figures that are under a threshold, in words; feedback counts from `min_feedback` texts on.

    If the results `before` of another version are given, what it missed as well is left out, unless much worse.
    """
    before = before or {}
    return [
        problem
        for name, figures in found.items()
        if name != "feedback" or figures["texts"] >= settings.min_feedback
        for problem in under_thresholds(settings, figures, name, before.get(name))
    ]


def results(evaluations: Mapping[str, Evaluation]) -> Results:
    """Return the figures of each part of the evaluation data."""
    return {name: evaluation.metrics() for name, evaluation in evaluations.items()}
