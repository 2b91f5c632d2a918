"""Withdraws feedback, so that it is no longer used for training or evaluation, and erases texts on request."""

from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from common.errors import PipelineError
from storage import events
from storage.database import Database, now
from storage.events import EventKind
from storage.feedback_sources import BYTES_OF_ROW
from storage.tables import Feedback, FeedbackSource

_ERASED = ""


def withdraw_row(database: Database, id_: int, erase: bool, reason: str) -> int:
    """Withdraw one row; return the number of withdrawn or erased rows, 0 if nothing was left to do.

    Raises:
        PipelineError: there is no such row.
    """
    return _withdraw(database, Feedback.id == id_, f"row {id_}", erase, reason)


def withdraw_source(database: Database, source: str, erase: bool, reason: str) -> int:
    """Withdraw all rows of a source; return the number of withdrawn or erased rows.

    Raises:
        PipelineError: the source has sent no row.
    """
    return _withdraw(database, Feedback.source == source, f"the source {source[:80]}", erase, reason)


def _withdraw(database: Database, which: ColumnElement[bool], name: str, erase: bool, reason: str) -> int:
    with database.transaction() as session:
        sources = session.scalars(select(Feedback.source).where(which).distinct()).all()
        if not sources:
            raise PipelineError(
                f"There is no feedback from {name}. `python app.py feedback sources` lists the sources."
            )
        values: dict[str, Any] = {"withdrawn_at": func.coalesce(Feedback.withdrawn_at, now(session))}
        if erase:
            # A short text can be guessed from its hash, so the hash is erased too.
            values |= {"text": _ERASED, "text_hash": _ERASED}
        unchanged = Feedback.text != _ERASED if erase else Feedback.withdrawn_at.is_(None)
        query = update(Feedback).where(which, unchanged).values(**values).returning(Feedback.id)
        changed = len(session.scalars(query).all())
        if not changed:
            return 0
        for source in sources:
            _recount(session, source)
        done = "withdrawn, and their texts erased" if erase else "withdrawn"
        message = f"{changed:,} rows of feedback of {name} were {done}, {reason}. No model learns from them again."
        events.record(session, EventKind.FEEDBACK_WITHDRAWN, message, {"rows": changed, "erased": erase})
        return changed


def _recount(session: Session, source: str) -> None:
    """Recount a source's rows without withdrawn ones, and its bytes without erased texts."""
    counters = FeedbackSource.name == source
    session.scalars(select(FeedbackSource.name).where(counters).with_for_update()).all()  # no row is added meanwhile
    size = func.coalesce(func.sum(func.length(Feedback.text) + BYTES_OF_ROW), 0)
    used = func.count().filter(Feedback.withdrawn_at.is_(None))
    query = select(used, size).where(Feedback.source == source, Feedback.text != _ERASED)
    rows, bytes_ = session.execute(query).one()
    session.execute(update(FeedbackSource).where(counters).values(rows=rows, bytes=bytes_))
