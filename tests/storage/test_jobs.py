"""Jobs: one of a kind at a time, begun once, cancelled or taken up again, whoever asks at the same moment."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from sqlalchemy.orm import Session

from storage import jobs, leases
from storage.database import Database, now
from storage.jobs import Outcome
from storage.tables import Job


def _run(database: Database, kind: jobs.Kind, state: jobs.State) -> int:
    job_id = jobs.enqueue(database, kind, "by the test").id
    assert jobs.begin(database, job_id) is not None
    _end(database, job_id, state)
    return job_id


def _end(database: Database, job_id: int, state: jobs.State) -> None:
    with database.transaction() as session:
        jobs.end(session, job_id, Outcome(state, {"state": state}))


def _get(database: Database, job_id: int) -> Job:
    job = jobs.get(database, job_id)
    assert job is not None
    return job


def _slow_now(session: Session) -> datetime:
    """As slow as to let the others in between what was read and what is written."""
    time.sleep(0.05)
    return now(session)


def test_of_many_requests_at_once_comes_one_job_of_a_kind(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "now", _slow_now)
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda number: jobs.enqueue(database, jobs.CHECK, f"request {number}").id, range(8)))
    assert len(set(ids)) == 1


def test_a_job_that_waits_or_runs_is_the_one_of_its_kind(database: Database) -> None:
    first = jobs.enqueue(database, jobs.RETRAIN, "the first")
    assert jobs.enqueue(database, jobs.RETRAIN, "the second").id == first.id
    check = jobs.enqueue(database, jobs.CHECK, "another kind")
    assert check.id != first.id
    assert jobs.begin(database, first.id) is not None
    assert jobs.enqueue(database, jobs.RETRAIN, "the third").id == first.id
    assert jobs.waiting(database, jobs.RETRAIN) is None
    _end(database, first.id, jobs.REJECTED)
    later = jobs.enqueue(database, jobs.RETRAIN, "the fourth")
    assert later.id > first.id
    assert [getattr(jobs.waiting(database, kind), "id", None) for kind in jobs.KINDS] == [check.id, later.id]


def test_a_job_is_begun_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job = jobs.enqueue(database, jobs.CHECK, "by the test")
    monkeypatch.setattr(jobs, "now", _slow_now)
    with ThreadPoolExecutor(8) as pool:
        begun = list(pool.map(lambda _: jobs.begin(database, job.id), range(8)))
    assert [item.attempts for item in begun if item is not None] == [1]
    running = _get(database, job.id)
    assert (running.state, running.attempts) == (jobs.RUNNING, 1)
    assert running.started_at is not None
    _end(database, job.id, jobs.SUCCEEDED)
    assert jobs.begin(database, job.id) is None
    assert jobs.begin(database, 99) is None


def test_a_job_that_waits_is_cancelled_at_once_and_one_that_runs_is_asked_to_end(database: Database) -> None:
    waiting = jobs.enqueue(database, jobs.CHECK, "by the test")
    assert jobs.request_cancel(database, waiting.id) is not None
    cancelled = _get(database, waiting.id)
    assert cancelled.state == jobs.CANCELLED
    assert cancelled.ended_at is not None
    assert jobs.begin(database, waiting.id) is None

    running = jobs.enqueue(database, jobs.CHECK, "by the test")
    jobs.begin(database, running.id)
    assert not jobs.is_cancel_requested(database, running.id)
    jobs.request_cancel(database, running.id)
    assert jobs.is_cancel_requested(database, running.id)
    assert _get(database, running.id).state == jobs.RUNNING

    _end(database, running.id, jobs.SUCCEEDED)
    jobs.request_cancel(database, running.id)
    assert _get(database, running.id).state == jobs.SUCCEEDED
    assert jobs.request_cancel(database, 99) is None


def test_a_job_that_deploys_its_version_is_not_cancelled_even_if_it_is_interrupted(database: Database) -> None:
    job = jobs.enqueue(database, jobs.RETRAIN, "by the test")
    jobs.begin(database, job.id)
    jobs.request_cancel(database, job.id)
    jobs.set_step(database, job.id, "promoting version 2", finishing=True)
    with database.transaction() as session:
        jobs.requeue(session, job.id)
    jobs.request_cancel(database, job.id)
    assert _get(database, job.id).state == jobs.QUEUED
    jobs.begin(database, job.id)
    jobs.request_cancel(database, job.id)
    assert not jobs.is_cancel_requested(database, job.id)


@pytest.mark.parametrize("comes_first", ["begin", "cancel"])
def test_a_job_that_is_begun_and_cancelled_at_once_is_either_of_them(database: Database, comes_first: str) -> None:
    job_id = jobs.enqueue(database, jobs.CHECK, "by the test").id
    begun: list[Job | None] = []
    actions = {
        "cancel": lambda: jobs.request_cancel(database, job_id),
        "begin": lambda: begun.append(jobs.begin(database, job_id)),
    }
    second = threading.Thread(target=actions["begin" if comes_first == "cancel" else "cancel"])
    with database.transaction() as session:
        session.get_one(Job, job_id).state = jobs.RUNNING if comes_first == "begin" else jobs.CANCELLED
        session.flush()
        second.start()
        time.sleep(0.3)
    second.join()
    job = _get(database, job_id)
    if comes_first == "begin":
        assert (job.state, job.cancel_requested) == (jobs.RUNNING, True)
    else:
        assert (job.state, begun) == (jobs.CANCELLED, [None])


def test_a_job_whose_process_is_gone_is_found_and_done_again(database: Database) -> None:
    job_id = jobs.enqueue(database, jobs.RETRAIN, "by the test").id
    assert jobs.lost(database) == []
    with leases.held(database, jobs.RETRAIN, 30):
        jobs.begin(database, job_id)
        assert jobs.lost(database) == []
    with leases.held(database, jobs.CHECK, 30):
        assert [job.id for job in jobs.lost(database)] == [job_id]
    with database.transaction() as session:
        jobs.requeue(session, job_id)
    assert jobs.lost(database) == []
    waiting = jobs.waiting(database, jobs.RETRAIN)
    assert waiting is not None
    assert waiting.id == job_id
    again = jobs.begin(database, job_id)
    assert again is not None
    assert again.attempts == 2
    with database.transaction() as session:
        jobs.requeue(session, job_id, counts=False)
    once_more = jobs.begin(database, job_id)
    assert once_more is not None
    assert once_more.attempts == 2


def test_a_job_that_ends_while_it_is_looked_for_is_not_lost(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = jobs.enqueue(database, jobs.CHECK, "by the test").id
    jobs.begin(database, job_id)

    holder_of = leases.holder_of

    def ends_before_the_lease_is_looked_at(database: Database, name: str) -> str | None:
        _end(database, job_id, jobs.SUCCEEDED)
        return holder_of(database, name)

    monkeypatch.setattr(leases, "holder_of", ends_before_the_lease_is_looked_at)
    assert jobs.lost(database) == []
    with database.transaction() as session:
        jobs.requeue(session, job_id)
    assert _get(database, job_id).state == jobs.SUCCEEDED


def test_retrainings_that_ended_are_told_the_newest_first(database: Database) -> None:
    told = [_run(database, jobs.RETRAIN, state) for state in (jobs.SUCCEEDED, jobs.REJECTED, jobs.FAILED)]
    for state in (jobs.SKIPPED, jobs.CANCELLED):
        _run(database, jobs.RETRAIN, state)
    checks = [_run(database, jobs.CHECK, state) for state in (jobs.SUCCEEDED, jobs.SUCCEEDED, jobs.FAILED)]
    jobs.begin(database, jobs.enqueue(database, jobs.RETRAIN, "by the test").id)
    assert [job.id for job in jobs.ended_retrainings(database)] == told[::-1]
    last = jobs.last_ended(database, jobs.CHECK)
    assert last is not None
    assert (last.id, last.result) == (checks[1], {"state": jobs.SUCCEEDED})


def test_a_job_ends_whatever_characters_its_error_has(database: Database) -> None:
    job = jobs.enqueue(database, jobs.CHECK, "by the test")
    with database.transaction() as session:
        jobs.end(session, job.id, jobs.Outcome(jobs.FAILED, {}, "a\0b \ud800"))
    ended = jobs.get(database, job.id)
    assert ended is not None
    assert (ended.state, ended.error) == (jobs.FAILED, "a\ufffdb ?")
