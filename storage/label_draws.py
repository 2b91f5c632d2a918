"""Live texts that were drawn at random for people to label, in random order: one series, of one version.

Labels are not stored here. The newest trusted feedback for a text is its label, whoever sent it and how.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from storage.database import Database, now
from storage.feedback import newest_label
from storage.tables import Feedback, LabelDraw, SampledPrediction

HELD = timedelta(minutes=10)
"""Time for which a text is kept for the person who got it; afterwards others get it, too."""


@dataclass(frozen=True)
class Draw:
    """A drawn text, with its label if it has one."""

    text: str
    text_hash: str
    predicted: str
    label: str | None
    is_skipped: bool

    @property
    def is_open(self) -> bool:
        """True if the text has no label yet and nobody has skipped it."""
        return self.label is None and not self.is_skipped


@dataclass(frozen=True)
class Series:
    """All drawn texts, in random order, with the version that classified them."""

    version: int
    began_at: datetime
    since: datetime
    """When the first of the texts was classified."""
    until: datetime
    draws: list[Draw]


def begin_series(database: Database, version: int, rows: Sequence[SampledPrediction]) -> None:
    """Replace the series by one of `rows`, which `version` has classified and which have texts, in random order."""
    order = list(rows)
    random.SystemRandom().shuffle(order)
    try:
        with database.transaction() as session:
            session.execute(delete(LabelDraw))
            drawn_at = now(session)
            session.execute(
                insert(LabelDraw),
                [
                    {
                        "position": position,
                        "version": version,
                        "drawn_at": drawn_at,
                        "at": row.at,
                        "text": row.text,
                        "text_hash": row.text_hash,
                        "predicted": row.label,
                    }
                    for position, row in enumerate(order)
                ],
            )
    except IntegrityError:
        pass  # another process has begun a series at the same moment, which is as good


def read_series(database: Database, trusted: str) -> Series | None:
    """Return the series with the labels from `trusted` sources; None if there is none."""
    columns = (
        LabelDraw.version,
        LabelDraw.drawn_at,
        LabelDraw.at,
        LabelDraw.text,
        LabelDraw.text_hash,
        LabelDraw.predicted,
        LabelDraw.skipped_at,
        Feedback.label,
    )
    query = (
        select(*columns)
        .outerjoin(Feedback, Feedback.id == newest_label(LabelDraw.text_hash, trusted))
        .order_by(LabelDraw.position)
    )
    with database.reading() as session:
        rows = session.execute(query).all()
    if not rows:
        return None
    draws = [Draw(row.text, row.text_hash, row.predicted, row.label, row.skipped_at is not None) for row in rows]
    times = [row.at for row in rows]
    return Series(rows[0].version, rows[0].drawn_at, min(times), max(times), draws)


def hand_out(database: Database, hashes: Sequence[str], holder: str, limit: int) -> set[str]:
    """Keep the first `limit` of the texts with these hashes for `holder` for a while, and return their hashes.

    Texts that are kept for somebody else are passed over.
    """
    with database.transaction() as session:
        time = now(session)
        query = select(LabelDraw).where(LabelDraw.text_hash.in_(hashes)).order_by(LabelDraw.position)
        is_free = or_(LabelDraw.held_until.is_(None), LabelDraw.held_until < time, LabelDraw.holder == holder)
        got: set[str] = set()
        for draw in session.scalars(query.where(is_free).with_for_update()):
            if draw.text_hash in got or len(got) < limit:
                draw.holder, draw.held_until = holder, time + HELD
                got.add(draw.text_hash)
        return got


def skip(database: Database, hash_: str) -> bool:
    """Leave the text with this hash out of the series for good; return False if it is not in the series."""
    with database.transaction() as session:
        skipped = update(LabelDraw).where(LabelDraw.text_hash == hash_).values(skipped_at=now(session))
        return bool(session.scalars(skipped.returning(LabelDraw.position)).all())


def purge_series(database: Database, days: float, keeps_texts: bool) -> None:
    """Delete a series that is older than `days`, and any series if texts are not kept."""
    with database.transaction() as session:
        old = () if not keeps_texts else (LabelDraw.drawn_at < now(session) - timedelta(days=days),)
        session.execute(delete(LabelDraw).where(*old))
