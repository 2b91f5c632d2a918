"""Runs one job in this process under the lease of its kind; if the lease is lost, the process ends."""

import _thread
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from common.errors import PipelineError
from common.periodic import run_until
from common.request_context import doing_job
from common.settings import Settings
from common.tracing import span
from storage import events, jobs, leases
from storage.database import Database
from storage.events import EventKind
from storage.tables import Job

LEASE_S = 20.0
"""Duration of the lease. The job of a killed process can go on after this time at the latest."""
LEASE_WAIT_S = 2.0
_CANCEL_POLL_S = 1.0

log = logging.getLogger(__name__)


class BusyError(PipelineError):
    """Another process runs a job of this kind, or the job is not queued any more."""


def run_job(settings: Settings, database: Database, job_id: int) -> Job:
    """Run a queued job to its end, whatever the outcome; return the ended job.

    Raises:
        BusyError: another process runs a job of this kind, or this job is not queued any more.
        KeyboardInterrupt: Ctrl-C was pressed; the job counts as cancelled.
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
            raise BusyError(f"Job {job_id} cannot start: it is not queued, or another process runs a {waiting.kind}.")
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
    # Each kind imports libraries that the other does not need.
    if job.kind == jobs.CHECK:
        from lifecycle.jobs.check import check

        return check(settings, database, job)
    from lifecycle.jobs.retrain import retrain

    with ExitStack() as spans:
        return retrain(settings, database, job, partial(_tell_step, database, job.id, spans))


def _tell_step(database: Database, job_id: int, spans: ExitStack, step: str) -> None:
    # Between two steps nothing is half done, so it is safe to stop here.
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
    """Use only the CPU time that serving leaves idle."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.nice(19)


@contextmanager
def _cancellable(database: Database, job_id: int) -> Iterator[None]:
    """Interrupt the block, as Ctrl-C does, when cancellation of the job is requested."""
    ended = threading.Event()

    def interrupt() -> None:
        if jobs.is_cancel_requested(database, job_id) and not ended.is_set():
            ended.set()
            _thread.interrupt_main()

    watch = partial(run_until, ended, "cancellation of the job", interrupt, _CANCEL_POLL_S)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _die(job: Job) -> None:
    log.critical("The lease for job %d was lost. Another process may continue the job, so this process ends.", job.id)
    os._exit(1)
