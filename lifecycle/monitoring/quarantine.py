"""Puts a feedback source into quarantine if its labels contradict known labels or confident predictions too often.

Two kinds of evidence, each by a one-sided binomial test against a rate with a margin:

- Labels of texts whose label is known: from the training file, the validation file or a trusted source, or because two
  other sources and the deployed model agree on it. Without the model, two sources could accuse an honest third.
- Labels that contradict a confident prediction of the deployed model. Two shares must be too high: the share of
  confident predictions that the source contradicts, and the share of confident ones among all contradicted predictions.
  A source that sends only corrections contradicts every prediction, rightly, but errors of a model are rarely
  confident. The second share distinguishes it from a source that flips labels. The usual shares are counted on the
  validation file and on trusted feedback. So if the model is confidently wrong on a new kind of texts, nobody is put
  into quarantine for that once a trusted source has labelled some.

Trusted sources are never put into quarantine here, because the others are compared with them.
"""

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from common.settings import Settings
from lifecycle.gates.batch_predict import Answers
from lifecycle.gates.evaluation_data import EvaluationData
from storage.database import Database
from storage.feedback import SourcedText, newest_feedback, newest_of_others, text_hash
from storage.feedback_sources import examined_up_to, quarantine
from storage.tables import Figures
from trainer.dataset import Dataset

CONFIDENT = 0.9
"""A prediction with at least this calibrated probability counts as confident."""
LEAST_ROWS = 30
"""Fewer rows prove nothing."""
MOST_ROWS = 2_000
"""Maximum number of examined rows of a source. They are drawn at random, so that nobody knows which."""
MARGIN = 0.2
"""Added to the rate of trusted labels; people who label with care disagree on a tenth of texts or less."""
CHANCE = 0.001
"""Probability that a source at the usual rate plus the margin is put into quarantine."""
_AGREEING = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rate:
    """A count of cases among a total."""

    count: int
    total: int

    @property
    def share(self) -> float:
        """The rate by Laplace's rule, because a few texts without an error do not prove a rate of 0."""
        return (self.count + 1) / (self.total + 2)

    def is_above(self, share: float) -> bool:
        """Return whether this rate is higher than `share`, by more than chance."""
        if self.total < LEAST_ROWS:
            return False
        return bool(binomtest(self.count, self.total, min(1.0, share), alternative="greater").pvalue < CHANCE)

    def __str__(self) -> str:
        """Format the rate for a mail."""
        return f"{self.count} of {self.total}"


@dataclass(frozen=True)
class Contradictions:
    """A comparison of labels with a model's predictions."""

    confident: Rate
    """Confident predictions, and how many of them the labels contradict."""
    all: Rate
    """Predictions that the labels contradict, and how many of them are confident."""
    agreeing: Rate
    """Predictions that the labels agree with, and how many of them are confident."""

    def exceeds(self, usual: "Contradictions") -> bool:
        """Return whether a source contradicts confident predictions far too often, other than by sending corrections.

        If it sends corrections, the contradicted predictions are errors, and confident as rarely as errors usually are.
        If it flips labels, they are right predictions, and confident as often as these usually are. So the middle
        between both rates distinguishes the two cases, however confident a model is.
        """
        middle = (usual.all.share + usual.agreeing.share) / 2
        return self.confident.is_above(usual.confident.share + MARGIN) and self.all.is_above(middle)


@dataclass
class Examination:
    """Rows of untrusted sources, with the known labels of some texts."""

    rows: dict[str, list[SourcedText]]
    """The rows by source."""
    known: dict[str, str]
    """Labels of the files and of trusted sources, by the hash of the text."""
    agreed: dict[str, Counter[str]]
    """Number of sources that give each label to a text, by the hash of the text."""

    @property
    def texts(self) -> list[str]:
        """All texts, source by source."""
        return [row.text for rows in self.rows.values() for row in rows]


def collect(settings: Settings, database: Database, dataset: Dataset) -> Examination | None:
    """Collect the rows to examine; None if no source has sent enough since its last release from quarantine."""
    with database.reading() as session:
        released = examined_up_to(session)
    by_source: dict[str, list[SourcedText]] = defaultdict(list)
    agreed: dict[str, Counter[str]] = defaultdict(Counter)
    for row in newest_of_others(database, settings.trusted_sources):
        if row.label in dataset.labels:
            agreed[row.text_hash][row.label] += 1
            if row.id > released.get(row.source, 0):
                by_source[row.source].append(row)
    drawn = random.SystemRandom()
    rows = {
        source: drawn.sample(found, min(len(found), MOST_ROWS))
        for source, found in sorted(by_source.items())
        if len(found) >= LEAST_ROWS
    }
    if not rows:
        return None
    known = {
        text_hash(text): label
        for part in (dataset.train, dataset.val)
        for text, label in zip(part.texts, part.labels, strict=True)
    }
    for held_out in (False, True):
        known |= {row.text_hash: row.label for row in newest_feedback(database, held_out, settings.trusted_sources)}
    return Examination(rows, known, agreed)


def examine(
    database: Database,
    examination: Examination,
    data: EvaluationData,
    answers: Answers,
    ask_deployed: Callable[[Sequence[str]], Answers],
) -> list[str]:
    """Put sources into quarantine; return their names. `answers` are the deployed model's predictions for `data`."""
    usual = contradictions([*data.val.labels, *data.feedback.labels], answers, slice(None))
    given = ask_deployed(examination.texts)
    found = []
    start = 0
    for source, rows in examination.rows.items():
        part = slice(start, start + len(rows))
        start += len(rows)
        against_model = contradictions([row.label for row in rows], given, part)
        against_labels = _against_labels(examination, rows, given.labels[part])
        reasons = []
        if against_labels.is_above(MARGIN):
            reasons.append(
                f"{against_labels} of its labels contradict the data files, trusted sources or labels that others "
                "agree on"
            )
        if against_model.exceeds(usual):
            reasons.append(
                f"it contradicts {against_model.confident} confident predictions of version {given.version}; "
                f"the validation file and trusted feedback contradict {usual.confident}"
            )
        if reasons:
            figures: Figures = {
                "rows examined": len(rows),
                "confident answers contradicted": str(against_model.confident),
                "usual": str(usual.confident),
                "confident among contradicted": str(against_model.all),
                "usual among contradicted": str(usual.all),
                "known labels contradicted": str(against_labels),
            }
            quarantine(database, source, "; ".join(reasons), figures)
            log.warning("The feedback of %s was put into quarantine: %s.", source, "; ".join(reasons))
            found.append(source)
    return found


def contradictions(labels: Sequence[str], answers: Answers, part: slice) -> Contradictions:
    """Compare labels with a part of a model's predictions."""
    differs = np.array(answers.labels[part]) != np.array(labels)
    confident = answers.confidence[part] >= CONFIDENT
    both, all_confident = int((differs & confident).sum()), int(confident.sum())
    contradicted = int(differs.sum())
    return Contradictions(
        Rate(both, all_confident),
        Rate(both, contradicted),
        Rate(all_confident - both, len(differs) - contradicted),
    )


def _against_labels(examination: Examination, rows: Sequence[SourcedText], answers: Sequence[str]) -> Rate:
    count = total = 0
    for row, answer in zip(rows, answers, strict=True):
        label = examination.known.get(row.text_hash)
        if label is None and _is_agreed(examination.agreed[row.text_hash], row.label, answer):
            label = answer
        if label is not None:
            total += 1
            count += label != row.label
    return Rate(count, total)


def _is_agreed(votes: Counter[str], own: str, answer: str) -> bool:
    """Return whether enough other sources give the model's label, and none gives another."""
    others = votes - Counter([own])
    return others.keys() == {answer} and others.total() >= _AGREEING
