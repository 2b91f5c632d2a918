"""Texts with human ratings for simulations: a part of the sample data to train on, and the other texts as live ones."""

import csv
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from common.settings import PACKAGED, Settings
from storage.feedback import text_hash
from trainer.sample_data import CLEAR_RATING, Domain, read_ratings, write_sample_data

LABELS = ("Negative", "Positive")

Row = tuple[str, str]
"""Text and label."""


def pipeline_settings(directory: Path, **given: Any) -> Settings:
    """Return settings of a pipeline with the small packaged encoder and all its files in a directory."""
    return Settings(
        train_data=directory / "train.csv",
        val_data=directory / "val.csv",
        state_dir=directory / "state",
        model_dir=directory / "model",
        model_repository=directory / "triton_repo",
        base_model=PACKAGED,
        **given,
    )


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
