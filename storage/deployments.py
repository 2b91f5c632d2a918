"""Deployments: which version served from when to when, and which one is meant to next."""

from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from storage.database import Database, now
from storage.tables import Deployment

INTENDED = "intended"
"""Written before anything is touched, so that a restart knows what was under way."""
SERVING = "serving"
ENDED = "ended"
UNDONE = "undone"
"""The version never served: it did not load."""


def intend(session: Session, version: int, previous: int | None, reason: str) -> Deployment:
    """Write down that `version` is to serve in the place of `previous`."""
    deployment = Deployment(version=version, previous=previous, state=INTENDED, reason=reason, started_at=now(session))
    session.add(deployment)
    session.flush()
    return deployment


def finish(session: Session, deployment_id: int, bake_s: float) -> None:
    """The intended version serves from now on, and the one before it does not; 0 seconds are no bake time."""
    time = now(session)
    session.execute(update(Deployment).where(Deployment.state == SERVING).values(state=ENDED, ended_at=time))
    deployment = session.get_one(Deployment, deployment_id)
    deployment.state = SERVING
    deployment.started_at = time
    deployment.bakes_until = time + timedelta(seconds=bake_s) if bake_s else None


def undo(session: Session, deployment_id: int) -> None:
    """The intended version does not serve."""
    deployment = session.get_one(Deployment, deployment_id)
    deployment.state = UNDONE
    deployment.ended_at = now(session)


def end_baking(database: Database, deployment_id: int) -> bool:
    """The version has proven itself; false where another process was first to say so."""
    with database.transaction() as session:
        baking = session.get(Deployment, deployment_id, with_for_update=True)
        if baking is None or baking.bakes_until is None:
            return False
        baking.bakes_until = None
        return True


def serving(session: Session) -> Deployment | None:
    """What serves, as far as the database knows."""
    return session.scalars(select(Deployment).where(Deployment.state == SERVING)).first()


def intended(session: Session) -> list[Deployment]:
    """What was under way when a process ended."""
    return list(session.scalars(select(Deployment).where(Deployment.state == INTENDED).order_by(Deployment.id)))


def rollback_target(session: Session) -> int | None:
    """The version that served before the one that serves.

    A version that was rolled back from is passed over: after going from 3 back to 2, back again means 1.
    """
    current = serving(session)
    return current.previous if current else None


def previous_of(session: Session, version: int) -> int | None:
    """What served before `version` did for the first time; none where it was the first."""
    query = select(Deployment.previous).where(Deployment.version == version, Deployment.state.in_((SERVING, ENDED)))
    return session.scalars(query.order_by(Deployment.id)).first()


def served(session: Session) -> list[int]:
    """Every version that has served, the one that did last first."""
    query = select(Deployment.version).where(Deployment.state.in_((SERVING, ENDED))).order_by(Deployment.id.desc())
    return list(dict.fromkeys(session.scalars(query)))


def mark_alias_set(database: Database, version: int) -> None:
    """MLflow's alias names the version that serves."""
    with database.transaction() as session:
        session.execute(
            update(Deployment).where(Deployment.state == SERVING, Deployment.version == version).values(alias_set=True)
        )


def of_version(session: Session, version: int) -> list[tuple[datetime, datetime | None, str]]:
    """When a version served, and why: from, to (none while it does), reason."""
    query = select(Deployment).where(Deployment.version == version, Deployment.state.in_((SERVING, ENDED)))
    return [(item.started_at, item.ended_at, item.reason) for item in session.scalars(query.order_by(Deployment.id))]
