"""What models are judged by: the validation file, and the feedback that is held out."""

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from lifecycle.asking import Answers
from settings import Settings
from storage.database import Database, now
from storage.feedback import LabelledText, newest_feedback, text_hash
from trainer.dataset import Dataset, LabelledTexts
from trainer.evaluation import Evaluation, evaluate_answers


@dataclass(frozen=True)
class EvaluationData:
    """Texts with their right labels, and what the labels are."""

    labels: tuple[str, ...]
    val: LabelledTexts
    feedback: LabelledTexts
    """Held out, and not in the validation file."""

    @property
    def texts(self) -> list[str]:
        """All texts, those of the file first."""
        return [*self.val.texts, *self.feedback.texts]

    def targets(self) -> npt.NDArray[np.int64]:
        """The right label of each text, as an index into the labels."""
        index = {label: position for position, label in enumerate(self.labels)}
        return np.array([index[label] for label in (*self.val.labels, *self.feedback.labels)], dtype=np.int64)

    def evaluate(self, answers: Answers) -> dict[str, Evaluation]:
        """How the answers to all texts are: on the validation file, and on the feedback where there is some."""
        predicted, targets, cut = answers.indices(self.labels), self.targets(), len(self.val.texts)
        parts = {"validation": slice(cut), "feedback": slice(cut, None)}
        return {
            name: evaluate_answers(predicted[part], answers.confidence[part], targets[part], self.labels)
            for name, part in parts.items()
            if len(targets[part])
        }


def evaluation_data(settings: Settings, database: Database, dataset: Dataset) -> EvaluationData:
    """What models are judged by now, beside data that have been read."""
    with database.reading() as session:
        since = now(session) - timedelta(days=settings.feedback_window_days)
    validated = {text_hash(text) for text in dataset.val.texts}
    rows = [
        row
        for row in newest_feedback(database, held_out=True, since=since)
        if row.label in dataset.labels and text_hash(row.text) not in validated
    ]
    return EvaluationData(dataset.labels, dataset.val, labelled_texts(rows))


def labelled_texts(rows: list[LabelledText]) -> LabelledTexts:
    """The rows as two lists."""
    return LabelledTexts([row.text for row in rows], [row.label for row in rows])
