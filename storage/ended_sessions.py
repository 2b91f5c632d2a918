"""Console sessions that were signed out, stored until they would have expired."""

from datetime import datetime

from sqlalchemy import delete, select

from storage.database import Database, now
from storage.tables import EndedSession


def end_session(database: Database, id_: str, ends_at: datetime) -> None:
    """End a session at all gateways, and delete the records of expired ones."""
    with database.transaction() as session:
        session.execute(delete(EndedSession).where(EndedSession.ends_at < now(session)))
        session.merge(EndedSession(id=id_, ends_at=ends_at))


def ended_sessions(database: Database) -> frozenset[str]:
    """Return the ids of the ended sessions."""
    with database.reading() as session:
        return frozenset(session.scalars(select(EndedSession.id)))
