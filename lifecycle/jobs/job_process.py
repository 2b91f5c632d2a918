"""Runs one job in this process under the lease of its kind; if the lease or the database is lost, the process ends."""

import _thread
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial

from sqlalchemy.exc import OperationalError, SQLAlchemyError

from common.errors import PipelineError
from common.periodic import run_until
from common.progress import listening
from common.request_context import doing_job
from common.settings import Settings
from common.tracing import span
from lifecycle.jobs.circumstances import CIRCUMSTANCES, circumstances
from lifecycle.jobs.cpu_share import modest
from storage import events, jobs, leases
from storage.database import Database
from storage.events import EventKind
from storage.tables import Figures, Job

LEASE_S = 60.0
"""Duration of the lease. It is long, because a job at low priority beside a saturated service may take many seconds to
renew it. The job of a killed process goes on at once on the same host, and after this time on another."""
LEASE_WAIT_S = 2.0
LEASE_LOST = 75
"""Exit status of a job's process that has lost its lease or the database. The scheduler resumes the job."""
_CANCEL_POLL_S = 1.0
_PROGRESS_S = 5.0
"""Minimum seconds between two records of a step's progress."""

log = logging.getLogger(__name__)


class BusyError(PipelineError):
    """Another process runs a job of this kind, or the job is not queued any more."""


def run_job(settings: Settings, database: Database, job_id: int, *, resumes: bool = False) -> Job:
    """Run a queued job to its end, whatever the outcome; return the ended job.

    `resumes` tells that the scheduler resumes the job if this process ends before it.

    Raises:
        BusyError: another process runs a job of this kind, or this job is not queued any more.
        OperationalError: the database cannot be used. With `resumes`, the job then still counts as running.
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
        noted = {CIRCUMSTANCES: circumstances(settings)} if job.kind == jobs.RETRAIN else {}
        try:
            with modest(settings.job_cpu_share), _cancellable(database, job_id) as finish:
                outcome = _do(settings, database, job, finish)
        except KeyboardInterrupt:
            with database.transaction() as session:
                jobs.end(session, job_id, jobs.Outcome(jobs.CANCELLED, {}))
                message = f"Job {job_id} ({job.kind}) was cancelled."
                events.record(session, EventKind.JOB_CANCELLED, message, job_id=job_id)
            if not jobs.is_cancel_requested(database, job_id):
                raise
            log.warning("%s", message)
        except Exception as error:
            if resumes and isinstance(error, OperationalError):
                raise  # the job is not at fault, and what it has done is on disk
            _fail(settings, database, job, error, noted)
            if not isinstance(error, PipelineError):
                raise
        else:
            with database.transaction() as session:
                jobs.end(session, job_id, replace(outcome, result=outcome.result | noted))
            tell("sentiment.job.state", outcome.state)
    ended = jobs.get(database, job_id)
    assert ended is not None
    return ended


def _do(settings: Settings, database: Database, job: Job, finish: Callable[[], None]) -> jobs.Outcome:
    # Each kind imports libraries that the other does not need.
    if job.kind == jobs.CHECK:
        from lifecycle.jobs.check import check

        return check(settings, database, job)
    from lifecycle.jobs.retrain import retrain

    with _Steps(database, job.id, finish) as step, listening(step.progress):
        return retrain(settings, database, job, step)


class _Steps:
    """Records the steps of a job, and the progress within a step. Use it as a context manager."""

    def __init__(self, database: Database, job_id: int, finish: Callable[[], None]) -> None:
        """Record the steps of the job `job_id`; `finish` makes the job ignore cancellation from then on."""
        self._database = database
        self._job_id = job_id
        self._finish = finish
        self._spans = ExitStack()
        self._name = ""
        self._told_at = 0.0

    def __enter__(self) -> "_Steps":
        """Return the steps; the `with` statement ends the last one."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the last step."""
        self._spans.close()

    def __call__(self, name: str, *, can_cancel: bool = True) -> None:
        """Begin a step. Without `can_cancel`, the job can no longer be cancelled from here on.

        Raises:
            KeyboardInterrupt: cancellation was requested. Between two steps nothing is half done.
        """
        if not can_cancel:
            self._finish()
        if jobs.is_cancel_requested(self._database, self._job_id):
            raise KeyboardInterrupt
        self._name, self._told_at = name, float("-inf")
        jobs.set_step(self._database, self._job_id, name, finishing=not can_cancel)
        self._spans.close()
        self._spans.enter_context(span(name.partition(" version")[0], attributes={"sentiment.job.step": name}))

    def progress(self, line: str) -> None:
        """Record the progress within the current step, at a limited rate, so that API and console show it."""
        if time.monotonic() - self._told_at >= _PROGRESS_S:
            self._told_at = time.monotonic()
            with suppress(SQLAlchemyError):  # the next line follows
                jobs.set_step(self._database, self._job_id, f"{self._name}: {line}")


def _fail(settings: Settings, database: Database, job: Job, error: Exception, result: Figures) -> None:
    reason = settings.without_secrets(str(error)) or type(error).__name__
    with database.transaction() as session:
        jobs.end(session, job.id, jobs.Outcome(jobs.FAILED, result, reason))
        message = f"Job {job.id} ({job.kind}) failed: {reason}"
        events.record(session, EventKind.JOB_FAILED, message, job_id=job.id)
    if not isinstance(error, PipelineError):  # otherwise the command tells it
        log.error("%s", message)


@contextmanager
def _cancellable(database: Database, job_id: int) -> Iterator[Callable[[], None]]:
    """Interrupt the block, which the main thread runs, as Ctrl-C does, when cancellation of the job is requested.

    The block gets a function. After it has returned, cancellation no longer interrupts the block.
    """
    ended = threading.Event()
    deciding = threading.Lock()
    main_thread = threading.get_ident()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGURG)}
    if handlers[signal.SIGINT] is signal.SIG_IGN:  # a shell script started the pipeline in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGURG, lambda *_: None)  # otherwise it would end no wait

    def interrupt() -> None:
        with deciding:
            if not ended.is_set() and jobs.is_cancel_requested(database, job_id):
                ended.set()
                # The first call takes effect at once, before `finish` can return. A real signal can arrive later, but
                # only that ends a wait for another process, such as pip's download.
                _thread.interrupt_main()
                signal.pthread_kill(main_thread, signal.SIGURG)

    def finish() -> None:
        # If cancellation comes first, this thread is interrupted here, before it goes on.
        with deciding:
            ended.set()

    watch = partial(run_until, ended, "cancellation of the job", interrupt, _CANCEL_POLL_S)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield finish
    finally:
        ended.set()
        watcher.join()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _die(job: Job) -> None:
    log.critical("The lease for job %d was lost. Another process may continue the job, so this process ends.", job.id)
    os._exit(LEASE_LOST)
