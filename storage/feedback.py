"""Feedback: texts with their correct labels, each for training or for evaluation but never for both.

A row counts unless it was withdrawn or its source is in quarantine. Models are evaluated on trusted sources only.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, delete, func, not_, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from storage.database import Database, now
from storage.feedback_sources import Quota, count_rows, size_of, trusts
from storage.tables import Feedback, FeedbackSource, Figures, IdempotencyKey

HELD_OUT_PERCENT = 30
"""Share of texts held out for evaluation. Not a setting: another share would move texts from evaluation to training."""
KEY_LIFETIME = timedelta(days=7)
"""Lifetime of an idempotency key. A request repeated after that time is stored again."""

_HASHES_AT_ONCE = 500
"""Maximum hashes per query, because databases limit the number of values."""


class KeyUsedError(Exception):
    """The client has used this idempotency key for different feedback."""


@dataclass(frozen=True)
class LabelledText:
    """A text and its correct label."""

    text: str
    label: str


@dataclass(frozen=True)
class SourcedText(LabelledText):
    """A stored text with its label, its source and its hash."""

    source: str
    text_hash: str
    id: int


def text_hash(text: str) -> str:
    """Return the SHA-256 hash of the text, ignoring letter case and white space."""
    return hashlib.sha256(" ".join(text.split()).casefold().encode()).hexdigest()


def is_held_out(hash_: str) -> bool:
    """Return whether the text with this hash is only used for evaluation, never for training."""
    return int(hash_[:8], 16) % 100 < HELD_OUT_PERCENT


def add_feedback(
    database: Database,
    rows: Sequence[LabelledText],
    source: str,
    key: str = "",
    caller: str = "",
    quota: Quota | None = None,
) -> list[int]:
    """Store feedback of a source on disk, and return the ids of the rows.

    If the client has sent the same rows with the same idempotency `key` before, nothing is stored and no id returned.
    `quota` limits the stored feedback.

    Raises:
        KeyUsedError: the client has sent `key` with different rows before.
        FullError: no more feedback can be stored.
        QuotaError: the source has used its quota.
    """
    with database.transaction() as session:
        time = now(session)
        if key:
            content = hashlib.sha256(repr([(row.text, row.label) for row in rows]).encode()).hexdigest()
            if _was_stored(session, caller or source, key, content):
                return []
            session.add(IdempotencyKey(caller=caller or source, key=key, content_hash=content, created_at=time))
        count_rows(session, source, [size_of(row.text) for row in rows], quota)
        added = []
        for row in rows:
            hash_ = text_hash(row.text)
            added.append(
                Feedback(
                    text=row.text,
                    text_hash=hash_,
                    label=row.label,
                    held_out=is_held_out(hash_),
                    source=source,
                    received_at=time,
                )
            )
        session.add_all(added)
        session.flush()
        return [row.id for row in added]


def _was_stored(session: Session, caller: str, key: str, content: str) -> bool:
    known = session.get(IdempotencyKey, (caller, key))
    if known is not None and known.content_hash != content:
        raise KeyUsedError
    # Older releases did not store the caller of a key, so only equal content identifies the same request.
    of_anybody = session.get(IdempotencyKey, ("", key))
    return known is not None or (of_anybody is not None and of_anybody.content_hash == content)


def purge_keys(database: Database) -> None:
    """Delete idempotency keys older than `KEY_LIFETIME`."""
    with database.transaction() as session:
        session.execute(delete(IdempotencyKey).where(IdempotencyKey.created_at < now(session) - KEY_LIFETIME))


def counts(row: type[Feedback] = Feedback) -> ColumnElement[bool]:
    """Return the SQL condition that a row is neither withdrawn nor from a source in quarantine."""
    in_quarantine = select(FeedbackSource.name).where(FeedbackSource.quarantined_at.is_not(None))
    return and_(row.withdrawn_at.is_(None), row.source.not_in(in_quarantine))


def newest_feedback(
    database: Database, held_out: bool, trusted: str, since: datetime | None = None, up_to: int | None = None
) -> list[SourcedText]:
    """Return the newest row of each text from trusted sources, in order of arrival, for evaluation or for training.

    `since` is the earliest time of that row; `up_to` is the largest row id that counts.
    """
    newest = _newest(Feedback.held_out == held_out, trusts(Feedback.source, trusted), up_to=up_to)
    query = _rows(newest.group_by(Feedback.text_hash))
    if since is not None:
        query = query.where(Feedback.received_at >= since)
    return _read(database, query)


def newest_of_others(database: Database, trusted: str, up_to: int | None = None) -> list[SourcedText]:
    """Return the newest row of each text from each untrusted source, in order of arrival."""
    newest = _newest(not_(trusts(Feedback.source, trusted)), up_to=up_to)
    return _read(database, _rows(newest.group_by(Feedback.source, Feedback.text_hash)))


def _newest(*conditions: ColumnElement[bool], up_to: int | None) -> Select[Any]:
    bound = () if up_to is None else (Feedback.id <= up_to,)
    return select(func.max(Feedback.id)).where(counts(), *conditions, *bound)


def _rows(newest: Select[Any]) -> Select[Any]:
    columns: tuple[Any, ...] = (Feedback.text, Feedback.label, Feedback.source, Feedback.text_hash, Feedback.id)
    return select(*columns).where(Feedback.id.in_(newest)).order_by(Feedback.id)


def _read(database: Database, query: Select[Any]) -> list[SourcedText]:
    with database.reading() as session:
        return [SourcedText(*row) for row in session.execute(query)]


def labelled_among(database: Database, hashes: Collection[str]) -> set[str]:
    """Return those of the hashes whose texts have feedback that counts."""
    wanted = sorted(hashes)
    with database.reading() as session:
        return {
            hash_
            for start in range(0, len(wanted), _HASHES_AT_ONCE)
            for hash_ in session.scalars(
                select(Feedback.text_hash).where(
                    Feedback.text_hash.in_(wanted[start : start + _HASHES_AT_ONCE]), counts()
                )
            )
        }


def last_feedback_id(database: Database) -> int:
    """Return the id of the newest row, or 0."""
    with database.reading() as session:
        return session.scalar(select(func.max(Feedback.id))) or 0


def newest_rows(database: Database, limit: int, source: str | None = None, before: int | None = None) -> list[Figures]:
    """Return stored rows with their texts, including withdrawn ones, newest first, in the API's format."""
    query = select(Feedback).order_by(Feedback.id.desc()).limit(limit)
    if source is not None:
        query = query.where(Feedback.source == source)
    if before is not None:
        query = query.where(Feedback.id < before)
    with database.reading() as session:
        shown = ("id", "text", "label", "source", "held_out", "received_at", "withdrawn_at")
        return [row.as_json(*shown) for row in session.scalars(query)]


def newest_label(of_text: InstrumentedAttribute[str], trusted: str) -> ColumnElement[int]:
    """Return SQL for the id of the row that determines the label of the text with this hash."""
    row = aliased(Feedback)
    conditions = (row.text_hash == of_text, counts(row), trusts(row.source, trusted))
    return select(func.max(row.id)).where(*conditions).scalar_subquery()
