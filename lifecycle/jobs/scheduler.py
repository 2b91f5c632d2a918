"""The scheduler: of all gateways on all hosts, one runs it, so that each due task runs once."""

import logging
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from common.clock import WallClock
from common.errors import PipelineError
from common.periodic import PeriodicTask, run_until
from common.settings import Settings, load_settings
from lifecycle.deployment.promotion import reconcile
from lifecycle.deployment.repair import restore_record
from lifecycle.jobs import mlflow_alias
from lifecycle.jobs.full_training import request_full_training
from lifecycle.jobs.job_process import LEASE_LOST
from lifecycle.jobs.job_process import LEASE_S as JOB_LEASE_S
from lifecycle.jobs.notification import deliver_due
from lifecycle.monitoring.digest import send_digest
from serving.host.die_with_parent import start_dying_with_parent
from storage import deployments, events, jobs, leases
from storage.database import Database
from storage.events import EventKind
from storage.feedback import purge_keys
from storage.label_draws import purge_series
from storage.lazy_database import Storage
from storage.releases import purge_differences
from storage.sampled_predictions import purge_sample
from storage.tables import Job

LEASE_S = 15.0
_RENEW_S = 3.0
_JOBS_S, _OUTBOX_S, _ALIAS_S, _RECONCILE_S, _SAMPLE_S, _DIGEST_S = 1, 5, 15, 3, 30, 300
"""Seconds between two runs of each periodic task."""
_LONGEST_ALIAS_PAUSE_S = 900.0
_APP = Path(__file__).resolve().parents[2] / "app.py"
_PERSISTENT = "persistent"
_TABLE = "scheduled_jobs"

log = logging.getLogger(__name__)


def request_check() -> None:
    """Enqueue the hourly check. APScheduler stores the name of this function in the database, and calls it by name."""
    database = Database(load_settings().database)
    try:
        jobs.enqueue(database, jobs.CHECK, "the hourly check")
    finally:
        database.close()


class Scheduler:
    """Takes the scheduler's lease when it is free, and runs the scheduler as long as the lease can be renewed.

    Running jobs go on without it: each has a lease of its own, so no other host starts another of its kind.
    """

    def __init__(self, settings: Settings, storage: Storage) -> None:
        """Create a scheduler that does nothing before `start`."""
        self._settings = settings
        self._storage = storage
        self._holder = leases.new_holder()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._campaign, name="scheduler lease", daemon=True)
        self._running: _Scheduler | None = None
        self._renewed_at = 0.0
        self._clock = WallClock()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._failed_at = float("-inf")
        """When the scheduler's own lease could not be renewed for the last time, by `time.monotonic`."""
        self._alias_pause_s: float = _ALIAS_S
        self._alias_due = 0.0

    def start(self) -> None:
        """Begin to request the lease."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the scheduler and its running jobs; the jobs resume where the scheduler runs next."""
        self._stop.set()
        self._thread.join()

    def running_jobs(self) -> list[jobs.Kind]:
        """Return the kinds of the jobs that run here."""
        running = dict(self._children)
        return [kind for kind in jobs.KINDS if kind in running and running[kind].poll() is None]

    def kill_jobs(self) -> None:
        """End the running jobs at once; they resume where the scheduler runs next."""
        for child in list(self._children.values()):
            child.kill()

    def _campaign(self) -> None:
        # No growing pauses: this process must notice a lost lease before another host takes it.
        run_until(self._stop, "scheduler lease", self._renew, _RENEW_S, longest_pause_s=_RENEW_S)
        if self._running is not None or self._children:
            self._end()
            try:
                database = self._storage.open()
                for job in jobs.lost(database):
                    with database.transaction() as session:
                        jobs.requeue(session, job.id, counts=False)  # only the shutdown of the pipeline ended it
                    log.info("Job %d (%s) was interrupted; it resumes at the next start.", job.id, job.kind)
                leases.give_back(database, leases.SCHEDULER, self._holder)
            except (PipelineError, SQLAlchemyError):
                log.warning("Cannot release the scheduler's lease now; it expires by itself.")

    def _renew(self) -> None:
        """Take or renew the lease; run the scheduler only while the lease is held."""
        try:
            database = self._storage.open()
            is_held = leases.take(database, leases.SCHEDULER, self._holder, LEASE_S)
        except Exception:
            self._failed_at = time.monotonic()
            # The database may come back before the lease expires.
            if time.monotonic() - self._renewed_at >= LEASE_S:
                self._lose()
            raise
        if not is_held:
            self._lose()
            return
        self._renewed_at = time.monotonic()
        step_s = self._clock.step_s()
        if self._running is not None and step_s:
            log.warning("The clock was changed by %+.0f s; due times are computed again.", step_s)
            self._shut_down()
        if self._running is None:
            self._run(database)

    def _lose(self) -> None:
        if self._running is not None:
            log.warning("The scheduler stops here: its lease could not be renewed.")
            self._shut_down()

    def _run(self, database: Database) -> None:
        scheduler = _Scheduler(
            jobstores={
                _PERSISTENT: SQLAlchemyJobStore(engine=database.engine, tablename=_TABLE),
                "default": MemoryJobStore(),
            },
            executors={"default": ThreadPoolExecutor(8)},
            # Missed runs are made up for once, however late.
            job_defaults={"coalesce": True, "misfire_grace_time": None, "max_instances": 1},
            timezone="UTC",
        )
        try:
            scheduler.start(paused=True)
            self._add_jobs(scheduler, database)
            request_full_training(self._settings, database)
            scheduler.resume()
        except Exception:
            scheduler.shutdown(wait=False)
            raise
        self._running = scheduler
        log.info(
            "The scheduler runs here; the next check is at %s.", f"{scheduler.get_job('check').next_run_time:%H:%M} UTC"
        )

    def _add_jobs(self, scheduler: "_Scheduler", database: Database) -> None:
        interval = IntervalTrigger(minutes=self._settings.check_minutes, timezone="UTC")
        # Only the time of the stored check is kept: an older release pickled its function under another module's name.
        due = _stored_time(database)
        # If it is due in more than one interval, the clock was set back.
        keeps = due is not None and due <= datetime.now(UTC) + interval.interval
        when = {"next_run_time": due} if keeps else {}
        scheduler.add_job(request_check, interval, id="check", jobstore=_PERSISTENT, replace_existing=True, **when)
        for name, seconds, look in (
            ("jobs", _JOBS_S, self._look_after_jobs),
            ("outbox", _OUTBOX_S, lambda database: deliver_due(self._settings, database)),
            ("alias", _ALIAS_S, self._look_after_alias),
            ("reconcile", _RECONCILE_S, self._look_after_deployments),
            ("sample", _SAMPLE_S, self._look_after_sample),
            *((("digest", _DIGEST_S, send_digest),) if self._settings.weekly_digest else ()),
        ):
            task = scheduler.supervised(f"scheduler: {name}", seconds)
            scheduler.add_job(partial(task.run, partial(look, database)), "interval", seconds=seconds, id=name)

    def _end(self) -> None:
        self._shut_down()  # first: it would see the ended jobs as killed ones, and start them again
        for child in self._children.values():
            child.terminate()
        for child in self._children.values():
            child.wait()
        self._children.clear()

    def _shut_down(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.shutdown(wait=False)

    def _look_after_jobs(self, database: Database) -> None:
        """Start queued jobs, and enqueue again jobs whose process was killed."""
        if self._stop.is_set():
            return
        ended = {name: child.returncode for name, child in list(self._children.items()) if child.poll() is not None}
        # Without an outage, a job that lost its lease kept it from being renewed, and may do so again and again.
        had_outage = time.monotonic() - self._failed_at < 2 * JOB_LEASE_S
        for job in jobs.lost(database):
            if job.kind in self._children and job.kind not in ended:
                # It renews its lease soon: this machine was asleep, or its clock was set forward. Otherwise it hangs.
                if job.cancel_requested and not job.result.get(jobs.FINISHING):
                    self._children[job.kind].kill()
                continue
            lost_lease = ended.get(job.kind) == LEASE_LOST
            counts = not (had_outage and lost_lease)
            with database.transaction() as session:
                if job.cancel_requested and not job.result.get(jobs.FINISHING):
                    jobs.end(session, job.id, jobs.Outcome(jobs.CANCELLED, {}))
                    message = f"Job {job.id} ({job.kind}) was cancelled."
                    events.record(session, EventKind.JOB_CANCELLED, message, job_id=job.id)
                    log.warning("%s", message)
                elif counts and job.attempts >= jobs.MOST_ATTEMPTS:
                    reason = f"failed: its process was killed {job.attempts} times"
                    if lost_lease:
                        reason = f"failed: its process lost its lease or the database {job.attempts} times"
                    message = f"Job {job.id} ({job.kind}) {reason}"
                    jobs.end(session, job.id, jobs.Outcome(jobs.FAILED, {}, message))
                    events.record(session, EventKind.JOB_FAILED, message, job_id=job.id)
                    log.error("%s", message)
                else:
                    jobs.requeue(session, job.id, counts=counts)
                    message = f"Job {job.id} ({job.kind}) was interrupted and resumes.{_place(job)}"
                    events.record(session, EventKind.JOB_RESUMED, message, job_id=job.id)
                    log.warning("%s", message)
        for name in ended:  # not before: if the database fails, the next pass needs their exit status
            self._children.pop(name, None)
        for kind in jobs.KINDS:
            waiting = jobs.waiting(database, kind)
            if waiting is not None and kind not in self._children and leases.holder_of(database, kind) is None:
                log.info("Starting job %d (%s): %s.%s", waiting.id, kind, waiting.reason, _place(waiting))
                self._children[kind] = _start("job", str(waiting.id))

    def _look_after_alias(self, database: Database) -> None:
        """Update MLflow's alias; try less and less often while MLflow is down, because each try takes seconds."""
        if not mlflow_alias.is_behind(database):
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
        purge_series(database, settings.sample_days, settings.sample_texts)
        purge_differences(database, settings.sample_days, settings.sample_texts)
        purge_keys(database)


class _Scheduler(BackgroundScheduler):  # type: ignore[misc]
    """APScheduler that survives exceptions of a job store; they would end the original's thread, and so all jobs."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._tasks: list[PeriodicTask] = []
        self._main = self.supervised("scheduler", _RENEW_S)

    def supervised(self, name: str, interval_s: float) -> PeriodicTask:
        """Create a task that is unregistered when the scheduler is shut down."""
        self._tasks.append(PeriodicTask(name, interval_s))
        return self._tasks[-1]

    def shutdown(self, wait: bool = True) -> None:
        """Shut down, even if the start failed."""
        for task in self._tasks:
            task.close()
        if self.running:
            super().shutdown(wait=wait)

    def _process_jobs(self) -> float | None:
        """Start due jobs; return the seconds until the next one, or None if none is scheduled."""
        with self._main.attempt():
            wait_s: float | None = super()._process_jobs()
            return wait_s
        return self._main.pause_s


def _place(job: Job) -> str:
    """Return a sentence about the step at which a job was interrupted; empty if it has not begun one."""
    return f" It was at this step: {job.step}." if job.step else ""


def _stored_time(database: Database) -> datetime | None:
    """Return when the stored check is due, or None if there is none."""
    with database.engine.connect() as connection:
        seconds = connection.scalar(text(f"SELECT next_run_time FROM {_TABLE} WHERE id = 'check'"))
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _start(*arguments: str) -> "subprocess.Popen[bytes]":
    # In its own process group: Ctrl-C in the terminal must not cancel the job, which resumes with the pipeline.
    return start_dying_with_parent([sys.executable, str(_APP), *arguments], own_group=True)
