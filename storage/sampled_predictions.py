"""A sample of live predictions, limited in number and age."""

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
"""Maximum characters stored per text, about twice what a model reads. It limits the size of the sample."""
_DECIMALS = 5
"""Decimals of a stored probability."""


@dataclass(frozen=True, slots=True)
class AnsweredText:
    """A live text and its prediction, before it is stored."""

    text: str
    label: str
    probabilities: bytes
    """[labels], little-endian float32, in the order of the version's labels."""
    version: int
    truncated: bool
    answered_at: float
    """Time on this process's monotonic clock."""


def add_sample(database: Database, answered: Sequence[AnsweredText], keeps_texts: bool) -> None:
    """Store predictions with their texts, or only with the texts' hashes and lengths without `keeps_texts`."""
    with database.transaction() as session:
        # The database's clock is the same for all hosts.
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
    """Return the newest rows in order of time, optionally only of one version or since a time."""
    query = select(SampledPrediction).order_by(SampledPrediction.id.desc()).limit(limit)
    if since is not None:
        query = query.where(SampledPrediction.at >= since)
    if version is not None:
        query = query.where(SampledPrediction.version == version)
    with database.reading() as session:
        return list(session.scalars(query))[::-1]


def purge_sample(database: Database, days: float, rows: int, keeps_texts: bool) -> None:
    """Delete rows older than `days` and all but about the newest `rows`; without `keeps_texts`, also all texts."""
    with database.transaction() as session:
        session.execute(delete(SampledPrediction).where(SampledPrediction.at < now(session) - timedelta(days=days)))
        # Ids ascend, possibly with gaps, so at most `rows` remain, and no count is needed.
        newest = session.scalar(select(func.max(SampledPrediction.id))) or 0
        session.execute(delete(SampledPrediction).where(SampledPrediction.id <= newest - rows))
        if not keeps_texts:
            session.execute(update(SampledPrediction).where(SampledPrediction.text.is_not(None)).values(text=None))
