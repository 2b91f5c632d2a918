"""Jobs: checks and retrainings, from the request to the result."""

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
"""The kinds of jobs. Each kind has a lease of the same name, which the running process must hold."""

State = Literal["queued", "running", "succeeded", "rejected", "skipped", "failed", "cancelled"]
QUEUED: State = "queued"
RUNNING: State = "running"
SUCCEEDED: State = "succeeded"
REJECTED: State = "rejected"
"""The candidate of a retraining failed a gate."""
SKIPPED: State = "skipped"
"""The retraining would have repeated an earlier one."""
FAILED: State = "failed"
CANCELLED: State = "cancelled"
ACTIVE: tuple[State, ...] = (QUEUED, RUNNING)

MOST_ATTEMPTS = 3
"""Maximum attempts. If a job's process is killed this often, the job itself may be the cause."""

FINISHING = "finishing"
"""Key in the result of a running job that can no longer be cancelled."""

_ENQUEUE_LOCK = 7_203_412
"""Key of PostgreSQL's advisory lock for enqueuing jobs. SQLite has one writer at a time anyway."""


@dataclass(frozen=True)
class Outcome:
    """The result of a job."""

    state: State
    result: Figures
    error: str = ""


def enqueue(database: Database, kind: Kind, reason: str, fingerprint: str = "") -> Job:
    """Enqueue a job and return it; if one of this kind is queued or running, return that one instead.

    `fingerprint` is the hash of a retraining's data and settings, if they are known already.
    """
    with database.transaction() as session:
        if session.get_bind().dialect.name == "postgresql":
            session.execute(select(func.pg_advisory_xact_lock(_ENQUEUE_LOCK)))
        active = session.scalars(select(Job).where(Job.kind == kind, Job.state.in_(ACTIVE)).order_by(Job.id)).first()
        if active is not None:
            return active
        job = Job(kind=kind, state=QUEUED, reason=reason, created_at=now(session), result={}, fingerprint=fingerprint)
        session.add(job)
        session.flush()
        return job


def get(database: Database, job_id: int) -> Job | None:
    """Return the job with this id, or None."""
    with database.reading() as session:
        return session.get(Job, job_id)


def waiting(database: Database, kind: Kind) -> Job | None:
    """Return the oldest queued job of a kind, or None."""
    with database.reading() as session:
        return session.scalars(select(Job).where(Job.kind == kind, Job.state == QUEUED).order_by(Job.id)).first()


def begin(database: Database, job_id: int) -> Job | None:
    """Mark a queued job as running and return it; None if it is not queued. The caller must hold the kind's lease."""
    with database.transaction() as session:
        job = session.get(Job, job_id, with_for_update=True)
        if job is None or job.state != QUEUED:
            return None
        job.state = RUNNING
        job.attempts += 1
        job.started_at = now(session)
        if job.result.get(FINISHING):  # cancelled in the moment in which that was recorded, and then interrupted
            job.cancel_requested = False
        return job


def set_step(database: Database, job_id: int, step: str, *, finishing: bool = False) -> None:
    """Record the current step of a running job. From a step that is `finishing` on, it can no longer be cancelled."""
    values: dict[str, object] = {"step": step}
    if finishing:
        values["result"] = {FINISHING: True}
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(values))


def set_fingerprint(database: Database, job_id: int, fingerprint: str) -> None:
    """Record the hash of a retraining's data and settings."""
    with database.transaction() as session:
        session.execute(update(Job).where(Job.id == job_id).values(fingerprint=fingerprint))


def end(session: Session, job_id: int, outcome: Outcome) -> None:
    """Mark a job as ended, in the same transaction as its event."""
    job = session.get_one(Job, job_id)
    job.state, job.result, job.error = outcome.state, outcome.result, outcome.error
    job.ended_at = now(session)


def request_cancel(database: Database, job_id: int) -> Job | None:
    """Cancel a queued job at once, or ask a running one to stop; return the job, or None if it does not exist.

    A job that is finishing is not asked, also not if it was interrupted meanwhile: it has begun to deploy its version.
    """
    with database.transaction() as session:
        job = session.get(Job, job_id, with_for_update=True)
        if job is None or job.result.get(FINISHING):
            return job
        if job.state == QUEUED:
            end(session, job_id, Outcome(CANCELLED, {}))
        elif job.state == RUNNING:
            job.cancel_requested = True
        return job


def is_cancel_requested(database: Database, job_id: int) -> bool:
    """Return whether cancellation of a running job was requested."""
    with database.reading() as session:
        return bool(session.scalar(select(Job.cancel_requested).where(Job.id == job_id)))


def lost(database: Database) -> list[Job]:
    """Return the running jobs whose lease nobody holds, because their process has ended."""
    found = {job.id for job in _running(database) if leases.holder_of(database, job.kind) is None}
    # A job that ended between the two reads has released its lease.
    return [job for job in _running(database) if job.id in found]


def _running(database: Database) -> list[Job]:
    with database.reading() as session:
        return list(session.scalars(select(Job).where(Job.state == RUNNING)))


def requeue(session: Session, job_id: int, counts: bool = True) -> None:
    """Enqueue a lost job again. The attempt counts only if `counts`."""
    values: dict[str, object] = {"state": QUEUED}
    if not counts:
        values["attempts"] = Job.attempts - 1
    session.execute(update(Job).where(Job.id == job_id, Job.state == RUNNING).values(values))


def active(session: Session) -> list[Job]:
    """Return the running and queued jobs, retrainings first."""
    query = select(Job).where(Job.state.in_(ACTIVE)).order_by(Job.kind.desc(), Job.state.desc(), Job.id)
    return list(session.scalars(query))


def ended_checks(database: Database, limit: int) -> list[Job]:
    """Return the checks with a result, newest first."""
    with database.reading() as session:
        query = select(Job).where(Job.kind == CHECK, Job.state == SUCCEEDED).order_by(Job.id.desc())
        return list(session.scalars(query.limit(limit)))


def ended_retrainings(database: Database) -> list[Job]:
    """Return the retrainings with a result or a failure, newest first."""
    ended = (SUCCEEDED, REJECTED, FAILED)
    with database.reading() as session:
        query = select(Job).where(Job.kind == RETRAIN, Job.state.in_(ended)).order_by(Job.id.desc())
        return list(session.scalars(query))


def retrainings_since(database: Database, since: datetime) -> list[Job]:
    """Return the retrainings that were requested since then."""
    with database.reading() as session:
        return list(session.scalars(select(Job).where(Job.kind == RETRAIN, Job.created_at >= since)))


def cancelled_retraining(database: Database, fingerprint: str) -> Job | None:
    """Return the last retraining with this hash of data and settings if it was cancelled, or None."""
    with database.reading() as session:
        query = select(Job).where(Job.kind == RETRAIN, Job.fingerprint == fingerprint).order_by(Job.id.desc())
        job = session.scalars(query).first()
        return job if job is not None and job.state == CANCELLED else None


def results_of_retrainings(session: Session) -> dict[int, Figures]:
    """Return, for each version, the result of the retraining that produced it."""
    query = select(Job.result).where(Job.kind == RETRAIN, Job.state.in_((SUCCEEDED, REJECTED))).order_by(Job.id)
    return {result["version"]: result for result in session.scalars(query) if "version" in result}


def last_ended(database: Database, kind: Kind) -> Job | None:
    """Return the last successful job of a kind."""
    with database.reading() as session:
        return last_ended_in(session, kind)


def last_ended_in(session: Session, kind: Kind) -> Job | None:
    """Return the last successful job of a kind, read in `session`."""
    query = select(Job).where(Job.kind == kind, Job.state == SUCCEEDED).order_by(Job.id.desc())
    return session.scalars(query).first()


def as_json(job: Job) -> Figures:
    """Return a job in the format of the API and the commands."""
    times = ("created_at", "started_at", "ended_at")
    return job.as_json("id", "kind", "state", "reason", "step", "attempts", *times, "result", "error")
