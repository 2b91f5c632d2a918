"""Jobs: checks and retrainings, from the request for one to its end."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from storage import leases
from storage.database import Database, now
from storage.tables import Figures, Job

Kind = Literal["check", "retrain"]
CHECK: Kind = "check"
RETRAIN: Kind = "retrain"
KINDS: tuple[Kind, ...] = (CHECK, RETRAIN)
"""Each is also the name of the lease that whoever does such a job must hold."""

State = Literal["queued", "running", "succeeded", "rejected", "skipped", "failed", "cancelled"]
QUEUED: State = "queued"
RUNNING: State = "running"
SUCCEEDED: State = "succeeded"
REJECTED: State = "rejected"
"""A retraining's candidate did not pass the gates."""
SKIPPED: State = "skipped"
"""A retraining would have made the same model again."""
FAILED: State = "failed"
CANCELLED: State = "cancelled"
ACTIVE: tuple[State, ...] = (QUEUED, RUNNING)

MOST_ATTEMPTS = 3
"""A job whose process was killed so often is not tried again: it may be what kills it."""

_ENQUEUE_LOCK = 7_203_412
"""Of PostgreSQL's advisory locks, the one under which jobs are asked for; SQLite has one writer at a time anyway."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    state: State
    result: Figures
    error: str = ""


def enqueue(database: Database, kind: Kind, reason: str) -> Job:
    """Ask for a job; where one of the kind waits or runs, that is returned."""
    with database.transaction() as session:
        if session.get_bind().dialect.name == "postgresql":
            session.execute(select(func.pg_advisory_xact_lock(_ENQUEUE_LOCK)))
        active = session.scalars(select(Job).where(Job.kind == kind, Job.state.in_(ACTIVE)).order_by(Job.id)).first()
        if active is not None:
            return active
        job = Job(kind=kind, state=QUEUED, reason=reason, created_at=now(session), result={})
        session.add(job)
        session.flush()
        return job


def get(database: Database, job_id: int) -> Job | None:
    """The job of a number."""
    with database.reading() as session:
        return session.get(Job, job_id)


def waiting(database: Database, kind: Kind) -> Job | None:
    """The oldest job of a kind that nobody has begun."""
    with database.reading() as session:
        return session.scalars(select(Job).where(Job.kind == kind, Job.state == QUEUED).order_by(Job.id)).first()


def begin(database: Database, job_id: int) -> Job | None:
    """Mark a waiting job as running, which the caller needs the lease of its kind for; none if it does not wait."""
    with database.transaction() as session:
        job = session.get(Job, job_id, with_for_update=True)
        if job is None or job.state != QUEUED:
            return None
        job.state = RUNNING
        job.attempts += 1
        job.started_at = now(session)
        return job


def set_step(database: Database, job_id: int, step: str) -> None:
    """Say what a running job does now."""
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(step=step))


def set_fingerprint(database: Database, job_id: int, fingerprint: str) -> None:
    """Keep what a retraining learns from, and how."""
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(fingerprint=fingerprint))


def end(session: Session, job_id: int, outcome: Outcome) -> None:
    """Mark a job as ended, in the transaction that also tells of it."""
    job = session.get_one(Job, job_id)
    job.state, job.result, job.error = outcome.state, outcome.result, outcome.error
    job.ended_at = now(session)


def request_cancel(database: Database, job_id: int) -> Job | None:
    """Cancel a job that waits, at once, or one that runs, as soon as it notices; none where there is no such job."""
    with database.transaction() as session:
        job = session.get(Job, job_id, with_for_update=True)
        if job is not None and job.state == QUEUED:
            end(session, job_id, Outcome(CANCELLED, {}))
        elif job is not None and job.state == RUNNING:
            job.cancel_requested = True
        return job


def is_cancel_requested(database: Database, job_id: int) -> bool:
    """Whether a running job should end."""
    with database.reading() as session:
        return bool(session.scalar(select(Job.cancel_requested).where(Job.id == job_id)))


def lost(database: Database) -> list[Job]:
    """Jobs that are marked as running while nobody holds the lease of their kind: their process is gone."""
    found = {job.id for job in _running(database) if leases.holder_of(database, job.kind) is None}
    # One that ended between the two looks gave its lease back.
    return [job for job in _running(database) if job.id in found]


def _running(database: Database) -> list[Job]:
    with database.reading() as session:
        return list(session.scalars(select(Job).where(Job.state == RUNNING)))


def requeue(session: Session, job_id: int, counts: bool = True) -> None:
    """Have a lost job done again; unless the attempt `counts`, as if it had not been begun."""
    values: dict[str, object] = {"state": QUEUED}
    if not counts:
        values["attempts"] = Job.attempts - 1
    session.execute(update(Job).where(Job.id == job_id, Job.state == RUNNING).values(values))


def active(session: Session) -> list[Job]:
    """What runs, and what waits, retrainings first."""
    query = select(Job).where(Job.state.in_(ACTIVE)).order_by(Job.kind.desc(), Job.state.desc(), Job.id)
    return list(session.scalars(query))


def ended_checks(database: Database, limit: int) -> list[Job]:
    """The checks that came to a result, the newest first."""
    with database.reading() as session:
        query = select(Job).where(Job.kind == CHECK, Job.state == SUCCEEDED).order_by(Job.id.desc())
        return list(session.scalars(query.limit(limit)))


def ended_retrainings(database: Database) -> list[Job]:
    """Every retraining that came to a verdict or failed, the newest first."""
    ended = (SUCCEEDED, REJECTED, FAILED)
    with database.reading() as session:
        query = select(Job).where(Job.kind == RETRAIN, Job.state.in_(ended)).order_by(Job.id.desc())
        return list(session.scalars(query))


def last_ended(database: Database, kind: Kind) -> Job | None:
    """The job of a kind that succeeded last."""
    with database.reading() as session:
        return last_ended_in(session, kind)


def last_ended_in(session: Session, kind: Kind) -> Job | None:
    """The same, as seen by `session`."""
    query = select(Job).where(Job.kind == kind, Job.state == SUCCEEDED).order_by(Job.id.desc())
    return session.scalars(query).first()


def as_json(job: Job) -> Figures:
    """A job as the API and the commands tell of it."""

    def told(time: datetime | None) -> str | None:
        return time.isoformat(timespec="seconds") if time else None

    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "reason": job.reason,
        "step": job.step,
        "attempts": job.attempts,
        "created_at": told(job.created_at),
        "started_at": told(job.started_at),
        "ended_at": told(job.ended_at),
        "result": job.result,
        "error": job.error,
    }
