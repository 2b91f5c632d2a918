"""Texts with human ratings: a part of the sample data to train on, and the other texts as live ones."""

import csv
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from common.settings import PACKAGED, Settings
from export.export import export
from serving.model_repo.repository import ModelRepository
from storage.feedback import text_hash
from trainer.dataset import Dataset
from trainer.sample_data import CLEAR_RATING, Domain, read_ratings, write_sample_data
from trainer.train import train

LABELS = ("Negative", "Positive")

Row = tuple[str, str]
"""Text and label."""


def pipeline_settings(directory: Path, **given: Any) -> Settings:
    """Return settings of a pipeline with all its files in a directory; it fine-tunes the small packaged encoder."""
    files = {
        "train_data": directory / "train.csv",
        "val_data": directory / "val.csv",
        "state_dir": directory / "state",
        "model_dir": directory / "model",
        "model_repository": directory / "triton_repo",
    }
    return Settings(**{"base_model": PACKAGED, **files, **given})


def train_once(settings: Settings, texts: int, seed: int) -> None:
    """Train and export a version on a part of the sample data, unless this was done before.

    Raises:
        PipelineError: as `write_sample_part`, `train` and `export`.
    """
    settings.train_data.parent.mkdir(parents=True, exist_ok=True)
    if not settings.train_data.exists():
        write_sample_part(settings, texts, seed)
    if ModelRepository(settings.model_repository).deployed() is None:
        if not settings.model_dir.exists():
            train(settings)
        export(settings)


def write_sample_part(settings: Settings, texts: int, seed: int) -> None:
    """Write the validation file of the sample data, and the first `texts` of its training texts, as the data files.

    Raises:
        PipelineError: the ratings cannot be downloaded, or a file cannot be written.
    """
    everything = settings.train_data.with_name("all.csv")
    validation = settings.val_data.with_name("sample_validation.csv")
    write_sample_data(everything, validation, seed)
    with everything.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[: 1 + texts]
    with settings.train_data.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    # Under another name: the pipeline refuses the sample's own validation file beside other training texts.
    settings.val_data.write_bytes(validation.read_bytes())


def rated_texts(
    domain: Domain, known: Collection[str] = (), least: float = CLEAR_RATING, below: float = math.inf
) -> dict[str, Row]:
    """Return texts of a domain by their hash, without duplicates and without the hashes in `known`.

    The label is the sign of the mean rating, from -4 to 4. Its absolute value is at least `least` and less than
    `below`.

    Raises:
        PipelineError: the ratings cannot be downloaded.
    """
    rows: dict[str, Row] = {}
    for text, rating in read_ratings(domain):
        hash_ = text_hash(text)
        if least <= abs(rating) < below and hash_ not in known:
            rows.setdefault(hash_, (text, LABELS[rating > 0]))
    return rows


def unknown_rows(
    dataset: Dataset, domains: Sequence[Domain], least: float = CLEAR_RATING, below: float = math.inf
) -> list[Row]:
    """Return the texts of domains that are not in `dataset`, with their labels; ratings are as in `rated_texts`.

    Raises:
        PipelineError: the ratings cannot be downloaded.
    """
    known = {text_hash(text) for text in (*dataset.train.texts, *dataset.val.texts)}
    return [row for domain in domains for row in rated_texts(domain, known, least, below).values()]
