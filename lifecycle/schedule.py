"""The scheduler: one of all gateways and hosts runs it, and what falls due is run once."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy.exc import SQLAlchemyError

from errors import PipelineError
from lifecycle import alias
from lifecycle.notification import deliver_due
from lifecycle.promotion import reconcile
from lifecycle.repair import restore_record
from serving.die_with_parent import command_dying_with_parent
from settings import Settings, load_settings
from storage import deployments, events, jobs, leases
from storage.database import Database
from storage.events import EventKind
from storage.releases import purge_differences
from storage.sampled_predictions import purge_sample
from storage.storage import Storage

LEASE_S = 15.0
_RENEW_S = 3.0
_JOBS_S, _OUTBOX_S, _ALIAS_S, _RECONCILE_S, _SAMPLE_S = 1, 5, 15, 3, 30
"""Seconds between two looks."""
_LONGEST_ALIAS_PAUSE_S = 900.0
_LARGEST_CLOCK_STEP_S = 5.0
"""By which the clock may be set without that what is due is reckoned anew."""
_APP = Path(__file__).resolve().parent.parent / "app.py"
_PERSISTENT = "persistent"
_TABLE = "scheduled_jobs"

log = logging.getLogger(__name__)


def request_check() -> None:
    """Ask for the hourly check. APScheduler keeps the name of this function in the database, and calls it by that."""
    database = Database(load_settings().database)
    try:
        jobs.enqueue(database, jobs.CHECK, "the hourly check")
    finally:
        database.close()


class Scheduler:
    """Takes the lease of the scheduler when it is free, and runs it as long as the lease can be renewed."""

    def __init__(self, settings: Settings, storage: Storage) -> None:
        """Prepare; `start` begins."""
        self._settings = settings
        self._storage = storage
        self._holder = leases.new_holder()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._campaign, name="scheduler lease", daemon=True)
        self._running: BackgroundScheduler | None = None
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._alias_pause_s: float = _ALIAS_S
        self._alias_due = 0.0

    def start(self) -> None:
        """Begin to ask for the lease."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it asks for the lease or has it; what goes wrong beyond what is expected would end that."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End; jobs under way are ended too, and go on where the scheduler runs next."""
        self._stop.set()
        self._thread.join()

    def _campaign(self) -> None:
        renewed_at = 0.0
        clock = _wall_clock()
        while True:
            try:
                database = self._storage.open()
                is_held = leases.take(database, leases.SCHEDULER, self._holder, LEASE_S)
            except (PipelineError, SQLAlchemyError):
                # The database may come back before the lease is over.
                is_held = self._running is not None and time.monotonic() - renewed_at < LEASE_S
            else:
                renewed_at = time.monotonic()
            if is_held and self._running is None:
                self._run(database)
            elif not is_held and self._running is not None:
                log.warning("The scheduler stops here: its lease could not be renewed.")
                self._end()
            elif self._running is not None and abs(_wall_clock() - clock) > _LARGEST_CLOCK_STEP_S:
                log.warning("The clock was set by %+.0f s; what is due is reckoned anew.", _wall_clock() - clock)
                self._running.shutdown(wait=False)
                self._run(database)
            clock = _wall_clock()
            if self._stop.wait(_RENEW_S):
                break
        if self._running is not None:
            self._end()
            try:
                for job in jobs.lost(database):
                    with database.transaction() as session:
                        jobs.requeue(session, job.id, counts=False)  # nobody killed it but the pipeline's end
                leases.give_back(database, leases.SCHEDULER, self._holder)
            except SQLAlchemyError:
                log.warning("The scheduler's lease could not be given back; it ends by itself.")

    def _run(self, database: Database) -> None:
        scheduler = BackgroundScheduler(
            jobstores={
                _PERSISTENT: SQLAlchemyJobStore(engine=database.engine, tablename=_TABLE),
                "default": MemoryJobStore(),
            },
            executors={"default": ThreadPoolExecutor(8)},
            # Late is better than never, and once is enough.
            job_defaults={"coalesce": True, "misfire_grace_time": None, "max_instances": 1},
            timezone="UTC",
        )
        scheduler.start(paused=True)
        interval = IntervalTrigger(minutes=self._settings.check_minutes, timezone="UTC")
        known = scheduler.get_job("check", _PERSISTENT)
        if known is None:
            scheduler.add_job(request_check, interval, id="check", jobstore=_PERSISTENT)
        elif known.trigger.interval != interval.interval or _is_too_far(known.next_run_time, interval):
            known.reschedule(interval)
        for name, seconds, look in (
            ("jobs", _JOBS_S, self._look_after_jobs),
            ("outbox", _OUTBOX_S, lambda database: deliver_due(self._settings, database)),
            ("alias", _ALIAS_S, self._look_after_alias),
            ("reconcile", _RECONCILE_S, self._look_after_deployments),
            ("sample", _SAMPLE_S, self._look_after_sample),
        ):
            scheduler.add_job(_careful(name, look, database), "interval", seconds=seconds, id=name)
        scheduler.resume()
        self._running = scheduler
        log.info(
            "The scheduler runs here; the next check is at %s.", f"{scheduler.get_job('check').next_run_time:%H:%M} UTC"
        )

    def _end(self) -> None:
        assert self._running is not None
        for child in self._children.values():
            child.terminate()
        for child in self._children.values():
            child.wait()
        self._children.clear()
        self._running.shutdown(wait=False)
        self._running = None

    def _look_after_jobs(self, database: Database) -> None:
        """Start what waits, and have done again what was killed."""
        for name, child in list(self._children.items()):
            if child.poll() is not None:
                del self._children[name]
        for job in jobs.lost(database):
            with database.transaction() as session:
                if job.cancel_requested:
                    jobs.end(session, job.id, jobs.Outcome(jobs.CANCELLED, {}))
                elif job.attempts >= jobs.MOST_ATTEMPTS:
                    message = f"Job {job.id} ({job.kind}) failed: its process was killed {job.attempts} times"
                    jobs.end(session, job.id, jobs.Outcome(jobs.FAILED, {}, message))
                    events.record(session, EventKind.JOB_FAILED, message, job_id=job.id)
                    log.error("%s", message)
                else:
                    jobs.requeue(session, job.id)
                    message = f"Job {job.id} ({job.kind}) was cut off and goes on."
                    events.record(session, EventKind.JOB_RESUMED, message, job_id=job.id)
                    log.warning("%s", message)
        for kind in jobs.KINDS:
            waiting = jobs.waiting(database, kind)
            if waiting is not None and kind not in self._children and leases.holder_of(database, kind) is None:
                log.info("Job %d: %s, for %s.", waiting.id, kind, waiting.reason)
                self._children[kind] = _start("job", str(waiting.id))

    def _look_after_alias(self, database: Database) -> None:
        """Have MLflow's alias follow; less and less often where MLflow is away, for each try takes seconds."""
        if not alias.is_behind(database):
            self._alias_pause_s = _ALIAS_S
        elif "alias" not in self._children and time.monotonic() >= self._alias_due:
            self._children["alias"] = _start("alias")
            self._alias_due = time.monotonic() + self._alias_pause_s
            self._alias_pause_s = min(2 * self._alias_pause_s, _LONGEST_ALIAS_PAUSE_S)

    def _look_after_deployments(self, database: Database) -> None:
        restore_record(self._settings, database)
        with database.reading() as session:
            cut_off = deployments.intended(session)
        if cut_off:
            reconcile(self._settings, database)

    def _look_after_sample(self, database: Database) -> None:
        settings = self._settings
        purge_sample(database, settings.sample_days, settings.sample_rows, settings.sample_texts)
        purge_differences(database, settings.sample_days, settings.sample_texts)


def _wall_clock() -> float:
    """How far the wall clock, by which APScheduler waits, is ahead of the one that nobody sets."""
    return time.time() - time.monotonic()


def _is_too_far(due: datetime, interval: IntervalTrigger) -> bool:
    """Whether something is due later than in one period, since the clock was set back."""
    return bool(due > datetime.now(timezone.utc) + interval.interval)


def _start(*arguments: str) -> "subprocess.Popen[bytes]":
    # In a process group of its own: Ctrl-C in the terminal is not for it, which goes on when the pipeline does.
    return subprocess.Popen(
        command_dying_with_parent([sys.executable, str(_APP), *arguments], own_group=True),
        stdin=subprocess.DEVNULL,
    )


def _careful(name: str, look: Callable[[Database], None], database: Database) -> Callable[[], None]:
    """`look`, such that what goes wrong is logged in a line, and it is done again when it is due."""

    def looks() -> None:
        try:
            look(database)
        except (PipelineError, SQLAlchemyError, OSError) as error:
            log.error("The scheduler's look at %s failed: %s", name, str(error).partition("\n")[0])

    return looks
