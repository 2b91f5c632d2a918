"""Sources of feedback: their rows, quotas, trust and quarantine.

A source's name is its kind, or its kind and a name: `key:website`, `admin`, `console:anna`, `import:labels.csv`,
`anonymous`. The transaction that stores rows also updates counters of rows and bytes, so no request needs to count.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, false, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import InstrumentedAttribute, Session

from common.errors import PipelineError
from common.settings import Settings
from common.source_names import is_trusted, trusted_entries
from common.sqlite_url import sqlite_file
from storage import events
from storage.database import Database, now
from storage.events import EventKind
from storage.tables import Feedback, FeedbackSource, Figures

BYTES_OF_ROW = 400
"""Bytes of a row besides its text: hash, label, source, time, and index entries."""
_SHARE_OF_SOURCE = 0.1
"""Share of the total quota that one untrusted source may use."""
_SHARE_OF_DAY = 0.01
"""Share of the total rows that one untrusted source may send in a day."""
_LEAST_FREE_BYTES = 500 * 2**20
_LEAST_FREE_SHARE = 0.05
_DAY = timedelta(days=1)


class QuotaError(Exception):
    """The source has used its quota."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        """Create the error with a message about the limit, and the seconds until the source can store again."""
        super().__init__(message)
        self.retry_after_s = retry_after_s


class FullError(Exception):
    """The total quota is used, so no feedback of any source is stored."""


@dataclass(frozen=True)
class Quota:
    """Limits for all stored feedback, and for each untrusted source."""

    trusted: str
    """Value of `SENTIMENT_TRUSTED_SOURCES`."""
    rows: int
    bytes: int

    @classmethod
    def from_settings(cls, settings: Settings) -> "Quota":
        """Return the quota of the settings."""
        return cls(settings.trusted_sources, settings.feedback_rows, settings.feedback_mib * 2**20)

    @property
    def rows_of_source(self) -> int:
        """Maximum rows of one source."""
        return max(1, int(_SHARE_OF_SOURCE * self.rows))

    @property
    def bytes_of_source(self) -> int:
        """Maximum bytes of one source."""
        return int(_SHARE_OF_SOURCE * self.bytes)

    @property
    def rows_of_day(self) -> int:
        """Maximum rows of one source in a day."""
        return max(1, int(_SHARE_OF_DAY * self.rows))


def trusts(column: InstrumentedAttribute[str], trusted: str) -> ColumnElement[bool]:
    """Return the SQL condition that a row's source is trusted, by the same rule as `is_trusted`."""
    entries = trusted_entries(trusted)
    conditions = [or_(column == entry, column.startswith(f"{entry}:", autoescape=True)) for entry in entries]
    return or_(false(), *conditions)


def count_rows(session: Session, source: str, sizes: Sequence[int], quota: Quota | None) -> None:
    """Add rows of these sizes in bytes to the source's counters, in the transaction that stores the rows.

    Raises:
        FullError: the rows exceed the total quota.
        QuotaError: the rows exceed the source's quota.
    """
    time = now(session)
    _ensure(session, source, time)
    found = session.scalars(select(FeedbackSource).where(FeedbackSource.name == source).with_for_update()).one()
    # Also if the clock was set back, and the day would begin in the future.
    if not timedelta(0) <= time - found.day < _DAY:
        found.day, found.rows_of_day = time, 0
    if quota is not None:
        _check_room(session, quota, len(sizes), sum(sizes))
        if not is_trusted(source, quota.trusted):
            _check_quota(found, quota, len(sizes), sum(sizes), time)
    found.rows += len(sizes)
    found.bytes += sum(sizes)
    found.rows_of_day += len(sizes)


def size_of(text: str) -> int:
    """Return the size of a row with this text, in bytes."""
    return len(text.encode()) + BYTES_OF_ROW


def _ensure(session: Session, source: str, time: datetime) -> None:
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    row = {"name": source, "rows": 0, "bytes": 0, "day": time, "rows_of_day": 0, "reason": "", "examined_up_to": 0}
    session.execute(insert(FeedbackSource).values(row).on_conflict_do_nothing())


def _check_room(session: Session, quota: Quota, rows: int, size: int) -> None:
    stored = session.execute(select(func.sum(FeedbackSource.rows), func.sum(FeedbackSource.bytes))).one()
    advice = "`python app.py feedback sources` shows whose they are, and `feedback withdraw --erase` makes room"
    if (stored[0] or 0) + rows > quota.rows:
        raise FullError(f"SENTIMENT_FEEDBACK_ROWS={quota.rows} rows of feedback are stored; {advice}.")
    if (stored[1] or 0) + size > quota.bytes:
        raise FullError(f"SENTIMENT_FEEDBACK_MIB={quota.bytes // 2**20} MiB of feedback are stored; {advice}.")
    if file := sqlite_file(session.get_bind().engine.url):
        disk = shutil.disk_usage(file.parent)
        least = min(_LEAST_FREE_BYTES, _LEAST_FREE_SHARE * disk.total)
        if disk.free - size < least:
            raise FullError(
                f"The disk of the database has {disk.free // 2**20} MiB free; feedback is stored only while "
                f"{least / 2**20:.0f} MiB are. Make room on it."
            )


def _check_quota(source: FeedbackSource, quota: Quota, rows: int, size: int, time: datetime) -> None:
    if source.rows_of_day + rows > quota.rows_of_day:
        raise QuotaError(
            f"{source.name} has sent {source.rows_of_day:,} rows of feedback within a day; a source that is not in "
            f"SENTIMENT_TRUSTED_SOURCES can send {quota.rows_of_day:,}, a hundredth of SENTIMENT_FEEDBACK_ROWS.",
            (source.day + _DAY - time).total_seconds(),
        )
    if source.rows + rows > quota.rows_of_source or source.bytes + size > quota.bytes_of_source:
        raise QuotaError(
            f"{source.name} has stored {source.rows:,} rows of feedback ({source.bytes // 2**20} MiB); a source that "
            "is not in SENTIMENT_TRUSTED_SOURCES can store a tenth of SENTIMENT_FEEDBACK_ROWS and of "
            "SENTIMENT_FEEDBACK_MIB.",
            _DAY.total_seconds(),
        )


def list_sources(database: Database, trusted: str) -> list[Figures]:
    """Return all sources with their counters and state, largest first."""
    with database.reading() as session:
        found = session.scalars(select(FeedbackSource).order_by(FeedbackSource.rows.desc(), FeedbackSource.name))
        return [
            {
                "source": source.name,
                "trusted": is_trusted(source.name, trusted),
                "quarantined": source.quarantined_at is not None,
                **source.as_json("reason", "rows", "bytes"),
            }
            for source in found
        ]


def quarantine(database: Database, name: str, reason: str, figures: Figures | None = None) -> None:
    """Exclude a source's rows from training and evaluation until it is released.

    Raises:
        PipelineError: there is no such source.
    """
    with database.transaction() as session:
        source = _source(session, name)
        if source.quarantined_at is not None:
            return
        source.quarantined_at, source.reason = now(session), reason
        message = (
            f"The feedback of {name} was put into quarantine: {reason}.\n"
            f"None of its {source.rows:,} rows is used to train or evaluate models until "
            f"`python app.py feedback release {name}`."
        )
        events.record(session, EventKind.SOURCE_QUARANTINED, message, {"source": name, **(figures or {})})


def release(database: Database, name: str, reason: str) -> None:
    """End a source's quarantine. Only later rows can put it into quarantine again.

    Raises:
        PipelineError: there is no such source, or it is not in quarantine.
    """
    with database.transaction() as session:
        source = _source(session, name)
        if source.quarantined_at is None:
            raise PipelineError(f"The source {name} is not in quarantine. Nothing was changed.")
        source.quarantined_at, source.reason = None, f"released {reason}"
        source.examined_up_to = session.scalar(select(func.max(Feedback.id))) or 0
        message = f"The feedback of {name} was released from quarantine {reason}. Models train on it again."
        events.record(session, EventKind.SOURCE_RELEASED, message, {"source": name})


def _source(session: Session, name: str) -> FeedbackSource:
    found = session.scalars(select(FeedbackSource).where(FeedbackSource.name == name).with_for_update()).first()
    if found is None:
        raise PipelineError(
            f"There is no source {name[:80]!r} of feedback. `python app.py feedback sources` lists all sources."
        )
    return found


def examined_up_to(session: Session) -> dict[str, int]:
    """Return the sources that can be put into quarantine, each with the id up to which its rows were released."""
    query = select(FeedbackSource.name, FeedbackSource.examined_up_to).where(FeedbackSource.quarantined_at.is_(None))
    return {source.name: source.examined_up_to for source in session.execute(query)}
