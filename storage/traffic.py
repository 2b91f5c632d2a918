"""Counts of predictions by hour, which outlive the gateways that answered."""

from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError

from storage.database import Database, now
from storage.tables import Traffic

KEPT = timedelta(days=35)


class Counts(NamedTuple):
    """Numbers of requests and of their texts."""

    requests: int = 0
    failed: int = 0
    """Responses with an HTTP status of 500 or more, or a gRPC status that means the same."""
    texts: int = 0


def add_traffic(database: Database, counts: Counts) -> None:
    """Add what a gateway answered to the current hour, and delete the hours before `KEPT`."""
    try:
        _add(database, counts)
    except IntegrityError:  # another gateway has begun the hour meanwhile
        _add(database, counts)


def _add(database: Database, counts: Counts) -> None:
    with database.transaction() as session:
        time = now(session)
        hour = time.replace(minute=0, second=0, microsecond=0)
        known = session.get(Traffic, hour, with_for_update=True)
        if known is None:
            session.add(Traffic(hour=hour, **counts._asdict()))
            session.execute(delete(Traffic).where(Traffic.hour < time - KEPT))
        else:
            known.requests += counts.requests
            known.failed += counts.failed
            known.texts += counts.texts


def traffic_since(database: Database, since: datetime) -> Counts | None:
    """Return the sums over the hours that began at `since` or later; None if no gateway has counted then."""
    query = select(func.sum(Traffic.requests), func.sum(Traffic.failed), func.sum(Traffic.texts))
    with database.reading() as session:
        requests, failed, texts = session.execute(query.where(Traffic.hour >= since)).one()
    return None if requests is None else Counts(int(requests), int(failed), int(texts))
