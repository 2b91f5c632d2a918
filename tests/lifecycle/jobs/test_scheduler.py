"""Two hosts' worth of processes on one PostgreSQL: one of them checks and retrains, and another when it dies."""

import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

import lifecycle.jobs.scheduler
from common import clock, periodic
from common.settings import Settings
from lifecycle.jobs import mlflow_alias
from lifecycle.jobs.job_process import LEASE_LOST
from lifecycle.jobs.scheduler import Scheduler
from storage import jobs, leases
from storage.database import Database
from storage.feedback import KEY_LIFETIME, LabelledText, add_feedback
from storage.lazy_database import Storage
from storage.sampled_predictions import AnsweredText, add_sample, newest_sample
from storage.tables import IdempotencyKey, Job
from tests.e2e.conftest import free_ports, wait_for
from tests.lifecycle.conftest import Served, make_served
from tests.lifecycle.learning import write_data
from tests.pages import PROJECT

pytestmark = pytest.mark.full

CHECK_MINUTES = 0.2


@dataclass
class Hosts:
    """Two `serve`, each with its own Triton and state, on one repository and one database."""

    first: Served
    second: Served
    database: Database

    @property
    def both(self) -> tuple[Served, Served]:
        return self.first, self.second

    def scheduling(self) -> list[Served]:
        """Those that say that the scheduler runs there."""
        return [host for host in self.both if "The scheduler runs here" in host.log]

    def checks(self) -> list[Job]:
        with self.database.reading() as session:
            return list(session.query(Job).filter(Job.kind == jobs.CHECK).order_by(Job.id))


@pytest.fixture
def hosts(tmp_path: Path, bert_bundle: Path, postgres_url: str) -> Iterator[Hosts]:
    write_data(tmp_path)
    settings = {"SENTIMENT_DATABASE_URL": postgres_url, "SENTIMENT_CHECK_MINUTES": str(CHECK_MINUTES)}
    first = make_served(tmp_path, bert_bundle, versions=1, **settings)
    database = Database(postgres_url)
    first.start()
    other = tmp_path / "second"
    other.mkdir()
    port = free_ports()
    own = {"SENTIMENT_STATE_DIR": str(other / "state"), "SENTIMENT_PORT": str(port)}
    second = Served(other, port, {**first.environment, **own})
    try:
        second.start()
        yield Hosts(first, second, database)
    finally:
        for host in (first, second):
            if host.process is not None:
                host.stop()
        database.close()


def test_one_of_two_hosts_checks_and_another_when_it_dies(hosts: Hosts) -> None:
    started = time.monotonic()
    wait_for(lambda: sum(job.ended_at is not None for job in hosts.checks()) >= 3, 90, "three checks")
    elapsed = time.monotonic() - started
    assert len(hosts.scheduling()) == 1
    # One a period, though two could: the first began a period after the start.
    assert len(hosts.checks()) <= elapsed / (60 * CHECK_MINUTES) + 2
    # Untrained, it is stale; nobody asked the second host, and the job is one for both.
    asked = [host.ask("POST", "/retrain").json() for host in hosts.both]
    assert len({job["id"] for job in asked}) == 1

    (dead,) = hosts.scheduling()
    holder = leases.holder_of(hosts.database, leases.SCHEDULER)
    dead.kill()
    wait_for(lambda: len(hosts.scheduling()) == 2, 40, "the other host to take over")
    assert leases.holder_of(hosts.database, leases.SCHEDULER) != holder
    before = len(hosts.checks())
    wait_for(lambda: len(hosts.checks()) > before, 60, "a check by the other host")
    with hosts.database.reading() as session:
        running = session.query(Job).filter(Job.state == jobs.RUNNING).all()
    assert len({job.kind for job in running}) == len(running)


def due_times(scheduler: Scheduler) -> dict[str, datetime]:
    running = scheduler._running
    return {} if running is None else {job.id: job.next_run_time for job in running.get_jobs()}


@contextmanager
def running_scheduler(settings: Settings, storage: Storage) -> Iterator[Scheduler]:
    """A scheduler in this process, during the block; the storage is closed with it."""
    scheduler = Scheduler(settings, storage)
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop()
        storage.close()


def test_a_clock_that_is_set_back_stops_nothing(
    tmp_path: Path, bert_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is due by the clock before would else be due hours later."""
    served = make_served(tmp_path, bert_bundle, versions=1)
    storage = Storage(served.settings)
    with running_scheduler(served.settings, storage) as scheduler:
        wait_for(lambda: len(due_times(scheduler)) >= 6, 20, "the scheduler to run")
        first = scheduler._running
        # As if everything had been planned two hours ahead of the clock as it is now.
        for name in due_times(scheduler):
            first.get_job(name).modify(next_run_time=datetime.now(UTC) + timedelta(hours=2))  # type: ignore[union-attr]
        before = clock._ahead_s()
        monkeypatch.setattr(clock, "_ahead_s", lambda: before - 7_200)
        wait_for(lambda: scheduler._running not in (first, None), 20, "the scheduler to notice")
        wait_for(lambda: len(due_times(scheduler)) >= 6, 20, "the scheduler to run again")
        due = due_times(scheduler)
        assert due.pop("check") <= datetime.now(UTC) + timedelta(minutes=served.settings.check_minutes)
        assert due
        assert max(due.values()) < datetime.now(UTC) + timedelta(minutes=1)
        assert "The clock was changed by -7200 s" in caplog.text


def test_a_moment_without_the_database_does_not_end_the_scheduler(
    tmp_path: Path, bert_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Less, so that it is soon told that it is locked, and more, so that a busy machine is no reason to end.
    monkeypatch.setattr("storage.database._WAIT_S", 1.0)
    monkeypatch.setattr(lifecycle.jobs.scheduler, "LEASE_S", 60.0)
    served = make_served(tmp_path, bert_bundle, versions=1)
    storage = Storage(served.settings)
    with running_scheduler(served.settings, storage) as scheduler:
        wait_for(lambda: len(due_times(scheduler)) >= 6, 20, "the scheduler to run")
        first = scheduler._running
        with closing(sqlite3.connect(served.settings.database.removeprefix("sqlite:///"))) as another:
            another.execute("BEGIN IMMEDIATE")
            time.sleep(6)  # longer than until the lease is renewed next, and the database is waited for
        wait_for(lambda: leases.holder_of(storage.open(), leases.SCHEDULER) is not None, 10, "the lease")
        assert scheduler._running is first


def test_what_is_too_much_or_too_old_goes_by_itself(
    tmp_path: Path, bert_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle.jobs.scheduler, "_SAMPLE_S", 0.2)
    bounds = {"SENTIMENT_SAMPLE_ROWS": "3", "SENTIMENT_SAMPLE_TEXTS": "false"}
    settings = make_served(tmp_path, bert_bundle, versions=1, **bounds).settings
    storage = Storage(settings)
    answered = [AnsweredText(f"text {number}", "Positive", bytes(8), 1, False, time.monotonic()) for number in range(9)]
    add_sample(storage.open(), answered, keeps_texts=True)
    add_feedback(storage.open(), [LabelledText("good", "Positive")], "someone", key="1")
    with storage.open().transaction() as session:
        session.execute(update(IdempotencyKey).values(created_at=datetime.now(UTC) - 2 * KEY_LIFETIME))

    def keys() -> int:
        with storage.open().reading() as session:
            return len(session.scalars(select(IdempotencyKey)).all())

    with running_scheduler(settings, storage):
        wait_for(lambda: [row.text for row in newest_sample(storage.open(), 9)] == [None] * 3, 30, "it to go")
        wait_for(lambda: keys() == 0, 30, "old idempotency keys to go")


class Faulty:
    """Calls of a function of which the first ones raise."""

    def __init__(self, function: Callable[..., Any], error: Exception, failures: int = 3) -> None:
        self.calls = 0
        self._function = function
        self._error = error
        self._failures = failures

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls <= self._failures:
            raise self._error
        return self._function(*arguments, **named)


@pytest.mark.parametrize(
    ("owner", "name", "task"),
    [
        (leases, "take", "scheduler lease"),
        (lifecycle.jobs.scheduler, "_stored_time", "scheduler lease"),
        (SQLAlchemyJobStore, "start", "scheduler lease"),
        # APScheduler's own thread calls it, outside of what it guards.
        (MemoryJobStore, "update_job", "scheduler"),
        (MemoryJobStore, "get_next_run_time", "scheduler"),
        (jobs, "lost", "scheduler: jobs"),
        (lifecycle.jobs.scheduler, "deliver_due", "scheduler: outbox"),
        (mlflow_alias, "is_behind", "scheduler: alias"),
        (lifecycle.jobs.scheduler, "restore_record", "scheduler: reconcile"),
        (lifecycle.jobs.scheduler, "purge_sample", "scheduler: sample"),
        (lifecycle.jobs.scheduler, "send_digest", "scheduler: digest"),
    ],
)
def test_the_scheduler_outlives_what_any_part_of_it_raises(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: Any,
    name: str,
    task: str,
) -> None:
    monkeypatch.setattr("common.periodic._FIRST_PAUSE_S", 0.01)
    for interval in ("_RENEW_S", "_JOBS_S", "_OUTBOX_S", "_ALIAS_S", "_RECONCILE_S", "_SAMPLE_S", "_DIGEST_S"):
        monkeypatch.setattr(lifecycle.jobs.scheduler, interval, 0.1)
    settings = Settings(
        state_dir=tmp_path / "state",
        model_repository=tmp_path / "triton_repo",
        check_minutes=1 / 60,
        access="open",
        weekly_digest=True,
    )
    storage = Storage(settings)
    storage.open()
    asked: list[object] = []
    # The stored job's function reads settings of its own, and would start real checks.
    monkeypatch.setattr(lifecycle.jobs.scheduler, "_start", lambda *_: pytest.fail("no job waits"))
    monkeypatch.setattr(jobs, "enqueue", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(lifecycle.jobs.scheduler, "load_settings", lambda: settings)
    error = OperationalError("SELECT 1", {}, OSError("away")) if name == "_stored_time" else KeyError("unexpected")
    faulty = Faulty(getattr(owner, name), error)
    monkeypatch.setattr(owner, name, lambda *arguments, **named: faulty(*arguments, **named))
    with running_scheduler(settings, storage) as scheduler:
        wait_for(lambda: faulty.calls > 3, 60, "what failed to be tried again")
        wait_for(lambda: len(due_times(scheduler)) >= 6, 60, "the scheduler to run")
        before = len(asked)
        wait_for(lambda: len(asked) > before + 1, 60, "checks to be asked for")
    (told,) = [message for message in caplog.messages if f"'{task}' failed" in message]
    assert type(error).__name__ in told
    assert not scheduler._thread.is_alive()
    assert periodic.failing_tasks() == []


@contextmanager
def running_job(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Scheduler, subprocess.Popen[bytes], Settings]]:
    """A scheduler, and the process of a check that takes longer than the block and ends with the scheduler."""
    job = directory / "job.py"
    job.write_text("import time; time.sleep(600)")
    monkeypatch.setattr(lifecycle.jobs.scheduler, "_APP", job)
    settings = Settings(state_dir=directory / "state", model_repository=directory / "triton_repo", access="open")
    storage = Storage(settings)
    jobs.enqueue(storage.open(), jobs.CHECK, "by the test")
    with running_scheduler(settings, storage) as scheduler:
        wait_for(lambda: jobs.CHECK in scheduler._children, 30, "the job to start")
        child = scheduler._children[jobs.CHECK]
        yield scheduler, child, settings
    assert child.poll() is not None


def test_a_job_outlives_a_change_of_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler starts again then; the threads of the first one, which started the job, end."""
    with running_job(tmp_path, monkeypatch) as (scheduler, child, _):
        first = scheduler._running
        before = clock._ahead_s()
        monkeypatch.setattr(clock, "_ahead_s", lambda: before + 7_200)
        wait_for(lambda: scheduler._running not in (first, None), 30, "the scheduler to run again")
        time.sleep(2)  # for the threads to end
        assert child.poll() is None


def test_a_job_outlives_the_lease_of_its_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage of the database that is longer than this lease must not cost a retraining an attempt."""
    monkeypatch.setattr("storage.database._WAIT_S", 1.0)
    monkeypatch.setattr(lifecycle.jobs.scheduler, "LEASE_S", 4.0)
    with running_job(tmp_path, monkeypatch) as (scheduler, child, settings):
        with closing(sqlite3.connect(settings.database.removeprefix("sqlite:///"))) as another:
            another.execute("BEGIN IMMEDIATE")
            wait_for(lambda: scheduler._running is None, 30, "the scheduler to end")
        assert "The scheduler stops here: its lease could not be renewed." in caplog.messages
        wait_for(lambda: scheduler._running is not None, 30, "the scheduler to run again")
        assert scheduler._children[jobs.CHECK] is child
        assert scheduler.running_jobs() == [jobs.CHECK]  # its process lives


def test_a_job_whose_process_lives_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a laptop was asleep, the lease has expired until the job's process renews it."""
    with running_job(tmp_path, monkeypatch) as (scheduler, child, _):
        database = scheduler._storage.open()
        assert jobs.begin(database, 1) is not None
        assert [job.id for job in jobs.lost(database)] == [1]
        time.sleep(3)  # the scheduler looks each second
        told = jobs.get(database, 1)
        assert told is not None
        assert told.state == jobs.RUNNING
        child.kill()
        wait_for(lambda: scheduler._children.get(jobs.CHECK) not in (child, None), 30, "the job to start again")


@pytest.mark.parametrize(
    ("status", "was_away", "fails"),
    [
        (1, True, "its process was killed 3 times"),
        (LEASE_LOST, False, "its process lost its lease or the database 3 times"),
        (LEASE_LOST, True, ""),
    ],
)
def test_only_an_outage_of_the_database_costs_no_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, was_away: bool, fails: str
) -> None:
    settings = Settings(state_dir=tmp_path / "state", model_repository=tmp_path / "triton_repo", access="open")
    job, starts = tmp_path / "job.py", tmp_path / "starts"
    job.write_text(
        f"import os, sys\nsys.path.insert(0, {str(PROJECT)!r})\n"
        "from storage import jobs\nfrom storage.database import Database\n"
        f"open({str(starts)!r}, 'a').write('.')\n"
        f"jobs.begin(Database({settings.database!r}), int(sys.argv[2]))\nos._exit({status})\n"
    )
    monkeypatch.setattr(lifecycle.jobs.scheduler, "_APP", job)
    storage = Storage(settings)
    jobs.enqueue(database := storage.open(), jobs.CHECK, "by the test")
    with running_scheduler(settings, storage) as scheduler:
        if was_away:
            scheduler._failed_at = time.monotonic()
        wait_for(lambda: starts.exists() and len(starts.read_text()) >= jobs.MOST_ATTEMPTS, 60, "the starts")
        if fails:
            wait_for(lambda: jobs.get(database, 1).state == jobs.FAILED, 30, "the job to fail")  # type: ignore[union-attr]
            assert fails in str(jobs.get(database, 1).error)  # type: ignore[union-attr]
        else:
            wait_for(lambda: len(starts.read_text()) > jobs.MOST_ATTEMPTS + 1, 60, "more starts")
