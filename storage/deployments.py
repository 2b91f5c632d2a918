"""Deployments: the history of deployed versions, and a deployment in progress."""

from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from storage.database import Database, now
from storage.tables import Deployment

INTENDED = "intended"
"""Recorded before anything changes, so that a restart knows about the interrupted deployment."""
SERVING = "serving"
ENDED = "ended"
UNDONE = "undone"
"""The version was never deployed: it did not load."""


def intend(session: Session, version: int, previous: int | None, reason: str) -> Deployment:
    """Record the intention to replace `previous` by `version`."""
    deployment = Deployment(version=version, previous=previous, state=INTENDED, reason=reason, started_at=now(session))
    session.add(deployment)
    session.flush()
    return deployment


def finish(session: Session, deployment_id: int, monitor_s: float) -> None:
    """Record that the intended version is deployed. Its monitoring window lasts `monitor_s` seconds; 0 for none."""
    time = now(session)
    session.execute(update(Deployment).where(Deployment.state == SERVING).values(state=ENDED, ended_at=time))
    deployment = session.get_one(Deployment, deployment_id)
    deployment.state = SERVING
    deployment.started_at = time
    deployment.monitored_until = time + timedelta(seconds=monitor_s) if monitor_s else None


def undo(session: Session, deployment_id: int) -> None:
    """Record that the intended version was not deployed."""
    deployment = session.get_one(Deployment, deployment_id)
    deployment.state = UNDONE
    deployment.ended_at = now(session)


def end_monitoring(database: Database, deployment_id: int) -> bool:
    """Record that a version passed its monitoring window; return False if another process recorded it first."""
    with database.transaction() as session:
        deployment = session.get(Deployment, deployment_id, with_for_update=True)
        if deployment is None or deployment.monitored_until is None:
            return False
        deployment.monitored_until = None
        return True


def serving(session: Session) -> Deployment | None:
    """Return the current deployment according to the database."""
    return session.scalars(select(Deployment).where(Deployment.state == SERVING)).first()


def intended(session: Session) -> list[Deployment]:
    """Return the deployments that were begun but neither finished nor undone."""
    return list(session.scalars(select(Deployment).where(Deployment.state == INTENDED).order_by(Deployment.id)))


def rollback_target(session: Session) -> int | None:
    """Return the version that was deployed before the current one.

    Versions that were rolled back are skipped: after a rollback from 3 to 2, the next target is 1.
    """
    current = serving(session)
    return current.previous if current else None


def previous_of(session: Session, version: int) -> int | None:
    """Return the version deployed before the first deployment of `version`, or None."""
    query = select(Deployment.previous).where(Deployment.version == version, Deployment.state.in_((SERVING, ENDED)))
    return session.scalars(query.order_by(Deployment.id)).first()


def served(session: Session) -> list[int]:
    """Return all versions that have been deployed, latest first."""
    query = select(Deployment.version).where(Deployment.state.in_((SERVING, ENDED))).order_by(Deployment.id.desc())
    return list(dict.fromkeys(session.scalars(query)))


def mark_alias_set(database: Database, version: int) -> None:
    """Record that MLflow's alias points to the deployed version."""
    with database.transaction() as session:
        session.execute(
            update(Deployment).where(Deployment.state == SERVING, Deployment.version == version).values(alias_set=True)
        )


def of_version(session: Session, version: int) -> list[tuple[datetime, datetime | None, str]]:
    """Return the deployments of a version as (start, end, reason); the end is None if it is still deployed."""
    query = select(Deployment).where(Deployment.version == version, Deployment.state.in_((SERVING, ENDED)))
    return [(item.started_at, item.ended_at, item.reason) for item in session.scalars(query.order_by(Deployment.id))]
