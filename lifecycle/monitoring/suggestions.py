"""Texts to label next: a random draw from the sample of live texts.

Ranking texts by how uncertain the model is of them was measured, and taught a model no more than a random draw.

Texts are drawn in the order of their hashes, which says nothing about what they mean. So the same texts are suggested
tomorrow, and a short list is the beginning of a long one. Held-out texts are never suggested: models never learn from
them. Label those as they come.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from common.errors import PipelineError
from common.settings import Settings
from serving.model_repo.texts import text_fault
from storage.database import Database
from storage.feedback import is_held_out, labelled_among, text_hash
from storage.sampled_predictions import newest_sample
from storage.tables import Figures, SampledPrediction
from trainer.file_changes import FileState, file_state
from trainer.kept_data import known_texts

MOST_SUGGESTIONS = 300
"""Maximum number of suggestions: an hour or two of labelling."""
MOST_SAMPLED = 5_000
"""Number of the newest sampled texts from which suggestions are drawn."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suggestion:
    """A text that should have a label."""

    text: str
    label: str
    """The label that the model predicted."""
    score: float
    """The probability of the predicted label."""
    version: int
    at: datetime
    """When the text was classified."""

    def figures(self) -> Figures:
        """Return the values for the API and the command."""
        return {
            "text": self.text,
            "label": self.label,
            "score": round(self.score, 4),
            "version": self.version,
            "at": self.at.isoformat(timespec="seconds"),
        }


@dataclass(frozen=True)
class Suggestions:
    """Texts to label next, and the number of texts they were drawn from."""

    texts: list[Suggestion]
    considered: int
    """Number of sampled texts that have no label and may be used for training."""

    def figures(self) -> Figures:
        """Return the values for the API and the command."""
        return {"considered": self.considered, "suggestions": [item.figures() for item in self.texts]}


def suggest(settings: Settings, database: Database, limit: int = MOST_SUGGESTIONS) -> Suggestions:
    """Draw up to `limit` unlabelled texts from the sample."""
    rows = _without_label(settings, database, newest_sample(database, MOST_SAMPLED))
    drawn = sorted(rows, key=lambda row: row.text_hash)[:limit]
    texts = [Suggestion(row.text or "", row.label, max(row.probabilities), row.version, row.at) for row in drawn]
    return Suggestions(texts, len(rows))


def _without_label(
    settings: Settings, database: Database, sample: Sequence[SampledPrediction]
) -> list[SampledPrediction]:
    """Return the newest row of each text that may be used for training and has no label in feedback or the files."""
    rows = {
        row.text_hash: row
        for row in sample
        # The texts are not always stored as they were: without a long end, or a character that the database refuses.
        if row.text is not None and text_hash(row.text) == row.text_hash and not is_held_out(row.text_hash)
    }
    files = map(file_state, (settings.train_data, settings.val_data))
    known = _hashes_in_files(settings, *files) | labelled_among(database, rows)
    return [row for hash_, row in rows.items() if hash_ not in known and row.text and text_fault(row.text) is None]


@lru_cache(maxsize=1)
def _hashes_in_files(settings: Settings, *_: FileState | None) -> frozenset[str]:
    """Return the hashes of all texts of the data files; the files are read again only when one changes."""
    try:
        return frozenset(map(text_hash, known_texts(settings)))
    except PipelineError as error:
        # A host with only a gateway has no data files.
        log.warning("Texts of the data files may be suggested, because the files are unreadable: %s", error)
        return frozenset()
