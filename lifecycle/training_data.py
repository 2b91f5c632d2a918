"""What a retraining learns from: the training file, and the feedback that is not held out."""

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path

from storage.database import Database
from storage.feedback import is_held_out, last_feedback_id, newest_feedback, text_hash
from trainer.dataset import Dataset, LabelledTexts, fingerprint

TRAIN_FILE = "train.csv"
VAL_FILE = "val.csv"


@dataclass(frozen=True)
class MergedData:
    """Training texts with feedback among them, and the validation texts as they are."""

    train: LabelledTexts
    val: LabelledTexts
    fingerprint: str
    feedback_texts: int
    """How many of the training texts are feedback."""


def merge(database: Database, dataset: Dataset) -> MergedData:
    """Add to the training texts the feedback that is to be learnt from.

    A label told as feedback takes the place of the file's. What models are judged by is not learnt from: neither a
    text of the validation file, nor one that was held out from the feedback, though the training file may have it.
    """
    up_to = last_feedback_id(database)
    validated = {text_hash(text) for text in dataset.val.texts}
    told = {
        text_hash(row.text): row
        for row in newest_feedback(database, held_out=False, up_to=up_to)
        if row.label in dataset.labels
    }
    held_out = {text_hash(row.text) for row in newest_feedback(database, held_out=True, up_to=up_to)}
    texts: list[str] = []
    labels: list[str] = []
    for text, label in zip(dataset.train.texts, dataset.train.labels, strict=True):
        hash_ = text_hash(text)
        if hash_ not in told and hash_ not in held_out and hash_ not in validated:
            texts.append(text)
            labels.append(label)
    learnt = [row for hash_, row in told.items() if hash_ not in validated and not is_held_out(hash_)]
    train = LabelledTexts(texts + [row.text.strip() for row in learnt], labels + [row.label for row in learnt])
    return MergedData(train, dataset.val, fingerprint(train, dataset.val), len(learnt))


def write(data: MergedData, directory: Path) -> tuple[Path, Path]:
    """Write both parts as CSV files into a directory, whole or not at all; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = directory / TRAIN_FILE, directory / VAL_FILE
    for path, texts in zip(paths, (data.train, data.val), strict=True):
        file = io.StringIO()
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(zip(texts.texts, texts.labels, strict=True))
        part = path.with_suffix(".part")
        with part.open("wb") as output:
            output.write(file.getvalue().encode())
            output.flush()
            os.fsync(output.fileno())
        part.replace(path)
    return paths
