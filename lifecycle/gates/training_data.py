"""Training data of a retraining: the training file, and the feedback that is not held out.

The file and trusted sources determine the label of a text. Each other source can only add texts unknown to both, up to
a share of their rows (`SENTIMENT_MAX_SOURCE_SHARE`), so that no single sender controls the next model.
"""

import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.settings import Settings
from serving.model_repo.repository import replacing
from storage.database import Database
from storage.feedback import SourcedText, is_held_out, last_feedback_id, newest_feedback, newest_of_others, text_hash
from storage.sampled_predictions import newest_sample
from trainer.dataset import Dataset, LabelledTexts, fingerprint

TRAIN_FILE = "train.csv"
VAL_FILE = "val.csv"
UNLABELLED_FILE = "unlabelled.json"
_MOST_UNLABELLED = 2_000


@dataclass(frozen=True)
class MergedData:
    """Training texts including feedback, and the unchanged validation texts."""

    train: LabelledTexts
    val: LabelledTexts
    fingerprint: str
    feedback_texts: int
    """Number of training texts that are feedback."""
    by_source: dict[str, int] = field(default_factory=dict)
    """Number of feedback texts in the training texts, by source."""


def merge(settings: Settings, database: Database, dataset: Dataset) -> MergedData:
    """Add the feedback for training to the training texts.

    A label from a trusted source replaces the file's label. Models never train on evaluation data: no text of the
    validation file, and no held-out trusted feedback, even if the training file has it.
    """
    trusted, up_to = settings.trusted_sources, last_feedback_id(database)
    validated = {text_hash(text) for text in dataset.val.texts}
    told = {
        row.text_hash: row
        for row in newest_feedback(database, held_out=False, trusted=trusted, up_to=up_to)
        if row.label in dataset.labels
    }
    held_out = {row.text_hash for row in newest_feedback(database, held_out=True, trusted=trusted, up_to=up_to)}
    texts: list[str] = []
    labels: list[str] = []
    known = validated | told.keys() | held_out
    for text, label in zip(dataset.train.texts, dataset.train.labels, strict=True):
        hash_ = text_hash(text)
        if hash_ not in told and hash_ not in held_out and hash_ not in validated:
            texts.append(text)
            labels.append(label)
            known.add(hash_)
    learnt = [row for hash_, row in told.items() if hash_ not in validated and not is_held_out(hash_)]
    others = [row for row in newest_of_others(database, trusted, up_to) if row.label in dataset.labels]
    most = int(settings.max_source_share * (len(texts) + len(learnt)))
    learnt += _from_others(others, known, most)
    train = LabelledTexts(texts + [row.text.strip() for row in learnt], labels + [row.label for row in learnt])
    by_source = dict(Counter(row.source for row in learnt))
    return MergedData(train, dataset.val, fingerprint(train, dataset.val), len(learnt), by_source)


def _from_others(rows: Sequence[SourcedText], known: Collection[str], most: int) -> list[SourcedText]:
    """Return rows from untrusted sources: one for each text that is not `known`, and at most `most` from a source."""
    by_text: dict[str, list[SourcedText]] = defaultdict(list)
    for row in rows:
        if row.text_hash not in known and not is_held_out(row.text_hash):
            by_text[row.text_hash].append(row)
    by_source: dict[str, list[SourcedText]] = defaultdict(list)
    for told in by_text.values():
        # The label of most sources; on a tie, the earliest label, which nobody can displace later.
        label = Counter(row.label for row in told).most_common(1)[0][0]
        first = next(row for row in told if row.label == label)
        by_source[first.source].append(first)
    kept = [row for told in by_source.values() for row in sorted(told, key=_place_in_sample)[:most]]
    return sorted(kept, key=lambda row: row.id)


def _place_in_sample(row: SourcedText) -> bytes:
    """Return a sort key that orders rows at random, but always in the same way. Senders do not choose a row's id.

    If only the newest rows were used, anyone could displace the rows that others have sent without a key.
    """
    return hashlib.sha256(str(row.id).encode()).digest()


def unlabelled_texts(database: Database, data: MergedData) -> list[str]:
    """Return the newest sampled live texts, without repetitions, evaluation data and texts of `data`."""
    known = {text_hash(text) for part in (data.train, data.val) for text in part.texts}
    found: dict[str, str] = {}
    for row in newest_sample(database, _MOST_UNLABELLED):
        if row.text is not None and row.text_hash not in known and not is_held_out(row.text_hash):
            found[row.text_hash] = row.text
    return list(found.values())


def write(data: MergedData, directory: Path, unlabelled: Sequence[str]) -> tuple[Path, Path]:
    """Write both parts as CSV files and the unlabelled texts into a directory, each file atomically.

    Return the paths of the CSV files.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = directory / TRAIN_FILE, directory / VAL_FILE
    for path, texts in zip(paths, (data.train, data.val), strict=True):
        with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            writer.writerows(zip(texts.texts, texts.labels, strict=True))
    with replacing(directory / UNLABELLED_FILE) as part:
        part.write_text(json.dumps(unlabelled), encoding="utf-8")
    return paths
