"""Feedback: texts with their right labels, kept for ever, each for learning or for judging but never for both."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select

from storage.database import Database, now
from storage.tables import Feedback, IdempotencyKey

HELD_OUT_PERCENT = 30
"""Of the texts, by which models are judged. Not a setting: another share would move texts from judging to learning."""

_HASHES_AT_ONCE = 500
"""Databases bound the values of a query."""


class KeyUsedError(Exception):
    """An idempotency key came with other feedback before."""


@dataclass(frozen=True)
class LabelledText:
    """A text and its right label."""

    text: str
    label: str


def text_hash(text: str) -> str:
    """SHA-256 of the text but for its letter case and white space, which make no other text of it."""
    return hashlib.sha256(" ".join(text.split()).casefold().encode()).hexdigest()


def is_held_out(hash_: str) -> bool:
    """Whether models are judged by the text of this hash, and so never learn from it."""
    return int(hash_[:8], 16) % 100 < HELD_OUT_PERCENT


def add_feedback(database: Database, rows: Sequence[LabelledText], source: str, key: str = "") -> bool:
    """Keep feedback; once this returns, it is on the disk. False where `key` was given with the same rows before.

    Raises:
        KeyUsedError: `key` was given with other rows before.
    """
    with database.transaction() as session:
        time = now(session)
        if key:
            content = hashlib.sha256(repr([(row.text, row.label) for row in rows]).encode()).hexdigest()
            known = session.get(IdempotencyKey, key)
            if known is not None:
                if known.content_hash != content:
                    raise KeyUsedError
                return False
            session.add(IdempotencyKey(key=key, content_hash=content, created_at=time))
        for row in rows:
            hash_ = text_hash(row.text)
            session.add(
                Feedback(
                    text=row.text,
                    text_hash=hash_,
                    label=row.label,
                    held_out=is_held_out(hash_),
                    source=source,
                    received_at=time,
                )
            )
        return True


def newest_feedback(
    database: Database, held_out: bool, since: datetime | None = None, up_to: int | None = None
) -> list[LabelledText]:
    """The newest row of each text, in the order they came; of both kinds of texts, those that were asked for.

    `since` bounds the time of the newest row, `up_to` the rows by their ids.
    """
    newest = select(func.max(Feedback.id)).where(Feedback.held_out == held_out).group_by(Feedback.text_hash)
    if up_to is not None:
        newest = newest.where(Feedback.id <= up_to)
    query = select(Feedback.text, Feedback.label).where(Feedback.id.in_(newest)).order_by(Feedback.id)
    if since is not None:
        query = query.where(Feedback.received_at >= since)
    with database.reading() as session:
        return [LabelledText(text, label) for text, label in session.execute(query)]


def told_among(database: Database, hashes: Collection[str]) -> set[str]:
    """Which of the texts of these hashes have a label."""
    wanted = sorted(hashes)
    with database.reading() as session:
        return {
            hash_
            for start in range(0, len(wanted), _HASHES_AT_ONCE)
            for hash_ in session.scalars(
                select(Feedback.text_hash).where(Feedback.text_hash.in_(wanted[start : start + _HASHES_AT_ONCE]))
            )
        }


def last_feedback_id(database: Database) -> int:
    """The id of the newest row; 0 where there is none."""
    with database.reading() as session:
        return session.scalar(select(func.max(Feedback.id))) or 0
