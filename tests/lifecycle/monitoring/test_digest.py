"""The week in plain words."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.settings import Settings
from lifecycle.monitoring.digest import digest, due, send_digest
from storage import deployments, events, jobs
from storage.database import Database
from storage.events import EventKind
from storage.feedback import LabelledText, add_feedback
from storage.tables import Figures
from storage.traffic import Counts, add_traffic

MONDAY = datetime(2026, 11, 30, 8, 0, tzinfo=UTC)


class Clock:
    """The time of the database, as the tests set it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = MONDAY - timedelta(days=9)
        for module in ("lifecycle.monitoring.digest", "storage.events", "storage.jobs", "storage.deployments"):
            monkeypatch.setattr(f"{module}.now", lambda _: self.time)
        for module in ("storage.traffic", "storage.feedback"):
            monkeypatch.setattr(f"{module}.now", lambda _: self.time)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(Settings(state_dir=tmp_path).database)
    yield opened
    opened.close()


def record(database: Database, kind: EventKind, message: str, version: int | None = None) -> None:
    with database.transaction() as session:
        events.record(session, kind, message, version=version)


def deploy(database: Database, version: int, previous: int | None) -> None:
    with database.transaction() as session:
        intention = deployments.intend(session, version, previous, "a test")
    with database.transaction() as session:
        deployments.finish(session, intention.id, 0)


def check(database: Database, result: Figures) -> None:
    job = jobs.enqueue(database, jobs.CHECK, "a test")
    jobs.begin(database, job.id)
    with database.transaction() as session:
        jobs.end(session, job.id, jobs.Outcome(jobs.SUCCEEDED, result))
    record(database, EventKind.CHECKED, result["summary"])


def test_a_week_is_told_with_what_happened_in_it_and_what_to_do(database: Database, clock: Clock) -> None:
    deploy(database, 1, None)
    record(database, EventKind.JOB_FAILED, "Job 1 (check) failed long ago.")
    clock.time = MONDAY - timedelta(days=2)
    add_traffic(database, Counts(12_345, 3, 20_000))
    add_feedback(database, [LabelledText("a fine screen", "Positive"), LabelledText("a bad one", "Negative")], "admin")
    record(database, EventKind.STALE, "Version 1 has become stale: accuracy on feedback is 0.59, under 0.7.\nMore.")
    record(database, EventKind.RETRAINING_STARTED, "Retraining started (job 7) on 2,413 texts: accuracy is low.")
    record(database, EventKind.PROMOTED, "Version 2 was promoted and replaced version 1: job 7 passed every gate.", 2)
    deploy(database, 2, 1)
    clock.time = MONDAY
    fine = "Version 2 is fine: accuracy 87.6% on validation; no drift."
    check(database, {"version": 2, "summary": fine, "problems": []})
    assert digest(database).splitlines() == [
        "Week to 30 November: Version 2 is fine: accuracy 87.6% on validation.",
        "",
        "How it stands",
        f"  {fine}",
        "",
        "The week",
        "  12,345 requests for predictions, with 20,000 texts; 3 failed (0.02%).",
        "  2 texts of feedback came in.",
        "  1 check; 1 alarm of low quality.",
        "  Sat 28 Nov 08:00  Retraining started (job 7) on 2,413 texts: accuracy is low.",
        "  Sat 28 Nov 08:00  Version 2 was promoted and replaced version 1: job 7 passed every gate.",
        "",
        "What to do next",
        "  Nothing.",
    ]


def test_trouble_leads_to_advice(database: Database, clock: Clock) -> None:
    deploy(database, 1, None)
    clock.time = MONDAY
    add_traffic(database, Counts(100, 50, 100))
    record(database, EventKind.JOB_FAILED, "Job 3 (retrain) failed: the disk is full")
    record(database, EventKind.DATA_UNFIT, "The data files cannot be used.")
    found = "Version 1 is under a threshold: accuracy on validation is 0.5, under 0.8 (20 texts); no drift."
    check(database, {"version": 1, "summary": found, "problems": ["accuracy on validation is 0.5"]})
    told = digest(database)
    advice = told.partition("What to do next\n")[2].splitlines()
    assert [line.split()[0] for line in advice] == ["Correct", "More", "A", "The"]
    assert told.startswith("Week to 30 November: Version 1 is under a threshold: accuracy on validation is 0.5, under")


def test_without_a_check_or_a_request_it_says_so(database: Database, clock: Clock) -> None:
    clock.time = MONDAY
    told = digest(database)
    assert "No check has judged the deployed version yet." in told
    assert "No requests for predictions." in told


def test_it_is_sent_once_each_monday(database: Database, clock: Clock) -> None:
    send_digest(database)
    assert not due(database), "nothing has been recorded yet"
    record(database, EventKind.DEPLOYED, "Version 1 is deployed.")
    clock.time = MONDAY - timedelta(minutes=1)
    record(database, EventKind.DIGEST, "Week to 23 November: …")
    assert not due(database)
    clock.time = MONDAY
    for _ in range(3):
        send_digest(database)
        clock.time += timedelta(days=2)
    sent = events.newest(database, 10, "digest")
    assert [event.at for event in sent] == [MONDAY, MONDAY - timedelta(minutes=1)]
    (_, mail) = events.due_mails(database)
    assert mail.subject.startswith("Week to 30 November: ")
    clock.time = MONDAY + timedelta(days=10)  # nothing ran on the Monday between
    assert due(database)
