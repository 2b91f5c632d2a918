"""A sample of what is asked and answered, bounded in number and in time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from sqlalchemy import delete, func, insert, select, update

from storage.database import Database, now
from storage.feedback import text_hash
from storage.tables import SampledPrediction

MOST_CHARACTERS = 5_000
"""Of a text, its first ones are kept: about twice what a model reads. So the sample's room is bounded too."""
_DECIMALS = 5
"""Of a probability that is kept."""


@dataclass(frozen=True, slots=True)
class AnsweredText:
    """A text and its answer, as the gateway has them."""

    text: str
    label: str
    probabilities: bytes
    """[labels], little-endian float32, in the order of the version's labels"""
    version: int
    truncated: bool
    answered_at: float
    """By this process's monotonic clock."""


def add_sample(database: Database, answered: Sequence[AnsweredText], keeps_texts: bool) -> None:
    """Keep answered texts, or, where texts are not to be kept, what is known of them and their answers."""
    with database.transaction() as session:
        # By the database's clock, which is the same for all hosts.
        offset = now(session) - timedelta(seconds=time.monotonic())
        session.execute(
            insert(SampledPrediction),
            [
                {
                    "at": offset + timedelta(seconds=item.answered_at),
                    "version": item.version,
                    "label": item.label,
                    "probabilities": np.frombuffer(item.probabilities, "<f4").astype(float).round(_DECIMALS).tolist(),
                    "text": item.text[:MOST_CHARACTERS] if keeps_texts else None,
                    "text_hash": text_hash(item.text),
                    "characters": len(item.text),
                    "words": len(item.text.split()),
                    "truncated": item.truncated,
                }
                for item in answered
            ],
        )


def newest_sample(
    database: Database, limit: int, since: datetime | None = None, version: int | None = None
) -> list[SampledPrediction]:
    """The newest rows, the oldest of them first; of one version, and since a time, where these are given."""
    query = select(SampledPrediction).order_by(SampledPrediction.id.desc()).limit(limit)
    if since is not None:
        query = query.where(SampledPrediction.at >= since)
    if version is not None:
        query = query.where(SampledPrediction.version == version)
    with database.reading() as session:
        return list(session.scalars(query))[::-1]


def purge_sample(database: Database, days: float, rows: int, keeps_texts: bool) -> None:
    """Remove what is older than `days`, all but about the newest `rows`, and texts where they are not to be kept."""
    with database.transaction() as session:
        session.execute(delete(SampledPrediction).where(SampledPrediction.at < now(session) - timedelta(days=days)))
        # Ids ascend, with gaps at most: so no more stay than `rows`, and none need be counted.
        newest = session.scalar(select(func.max(SampledPrediction.id))) or 0
        session.execute(delete(SampledPrediction).where(SampledPrediction.id <= newest - rows))
        if not keeps_texts:
            session.execute(update(SampledPrediction).where(SampledPrediction.text.is_not(None)).values(text=None))
