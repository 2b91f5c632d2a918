"""Runs one job in this process, under the lease of its kind: alive and in charge, or not at all."""

import _thread
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from errors import PipelineError
from request_context import doing_job
from settings import Settings
from storage import events, jobs, leases
from storage.database import Database
from storage.events import EventKind
from storage.tables import Job
from tracing import span

LEASE_S = 20.0
"""A job whose process was killed goes on after this."""
LEASE_WAIT_S = 2.0
_CANCEL_POLL_S = 1.0

log = logging.getLogger(__name__)


class BusyError(PipelineError):
    """Another process does a job of this kind."""


def run_job(settings: Settings, database: Database, job_id: int) -> Job:
    """Do a waiting job to its end, whatever that is; returns it.

    Raises:
        BusyError: another does one of its kind, or this one does not wait any more.
        KeyboardInterrupt: Ctrl-C; the job counts as cancelled.
    """
    waiting = jobs.get(database, job_id)
    if waiting is None:
        raise PipelineError(f"There is no job {job_id}.")
    with (
        doing_job(job_id),
        span(f"job {waiting.kind}", attributes={"sentiment.job.id": job_id}) as tell,
        leases.held(database, waiting.kind, LEASE_S, LEASE_WAIT_S, partial(_die, waiting)) as is_held,
    ):
        job = jobs.begin(database, job_id) if is_held else None
        if job is None:
            raise BusyError(f"Another process does a job of the kind {waiting.kind}, or job {job_id} does not wait.")
        _be_modest()
        try:
            with _cancellable(database, job_id):
                outcome = _do(settings, database, job)
        except KeyboardInterrupt:
            with database.transaction() as session:
                jobs.end(session, job_id, jobs.Outcome(jobs.CANCELLED, {}))
                message = f"Job {job_id} ({job.kind}) was cancelled."
                events.record(session, EventKind.JOB_CANCELLED, message, job_id=job_id)
            if not jobs.is_cancel_requested(database, job_id):
                raise
            log.warning("%s", message)
        except Exception as error:
            _fail(settings, database, job, error)
            if not isinstance(error, PipelineError):
                raise
        else:
            with database.transaction() as session:
                jobs.end(session, job_id, outcome)
            tell("sentiment.job.state", outcome.state)
    ended = jobs.get(database, job_id)
    assert ended is not None
    return ended


def _do(settings: Settings, database: Database, job: Job) -> jobs.Outcome:
    # Each brings libraries that the other can do without.
    if job.kind == jobs.CHECK:
        from lifecycle.check import check

        return check(settings, database, job)
    from lifecycle.retrain import retrain

    with ExitStack() as spans:
        return retrain(settings, database, job, partial(_tell_step, database, job.id, spans))


def _tell_step(database: Database, job_id: int, spans: ExitStack, step: str) -> None:
    # Between two steps nothing is half done.
    if jobs.is_cancel_requested(database, job_id):
        raise KeyboardInterrupt
    jobs.set_step(database, job_id, step)
    spans.close()
    spans.enter_context(span(step.partition(" version")[0], attributes={"sentiment.job.step": step}))


def _fail(settings: Settings, database: Database, job: Job, error: Exception) -> None:
    reason = settings.without_secrets(str(error)) or type(error).__name__
    with database.transaction() as session:
        jobs.end(session, job.id, jobs.Outcome(jobs.FAILED, {}, reason))
        message = f"Job {job.id} ({job.kind}) failed: {reason}"
        events.record(session, EventKind.JOB_FAILED, message, job_id=job.id)
    log.error("%s", message)


def _be_modest() -> None:
    """Take only the processor time that serving leaves over."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


@contextmanager
def _cancellable(database: Database, job_id: int) -> Iterator[None]:
    """Interrupt the block, as Ctrl-C does, when somebody asks for the job to be cancelled."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_CANCEL_POLL_S):
            try:
                if jobs.is_cancel_requested(database, job_id):
                    _thread.interrupt_main()
                    return
            except SQLAlchemyError:
                continue

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _die(job: Job) -> None:
    log.critical("The lease for job %d was lost; another process may go on with it, so this one ends.", job.id)
    os._exit(1)
