"""The monitoring window: what live calls raise a suspicion, what decides, and when a version has proven itself."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import update

from common import clock
from lifecycle.deployment import post_deploy_monitor, promotion
from lifecycle.deployment.post_deploy_monitor import (
    LEAST_CALLS,
    LEAST_FAILURES,
    PostDeployMonitor,
    suspicious_failures,
    suspicious_slowness,
)
from lifecycle.deployment.probe import Probing
from serving.client.call_statistics import CallStatistics, VersionStatistics
from storage import deployments, events, jobs
from storage.database import Database, now
from storage.tables import Deployment
from tests.lifecycle.conftest import Served, hollow_bundle, make_served, reconciled

BEFORE = VersionStatistics(answered=1_000, failed=0, lone_calls=LEAST_CALLS, lone_ms=4.0)
BEFORE_TOO_FEW = VersionStatistics(answered=1_000, failed=0, lone_calls=LEAST_CALLS - 1, lone_ms=4.0)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    """Versions 1 and 2; no Triton runs."""
    return make_served(tmp_path, hollow_bundle(tmp_path), 2)


@pytest.fixture
def database(served: Served) -> Iterator[Database]:
    with reconciled(served) as opened:
        yield opened


@pytest.fixture
def statistics(monkeypatch: pytest.MonkeyPatch) -> CallStatistics:
    """Of a gateway; each look of the watch probes."""
    monkeypatch.setattr(post_deploy_monitor, "PROBE_INTERVAL_S", 0.0)
    return CallStatistics()


def let_probes_find(monkeypatch: pytest.MonkeyPatch, problem: str | None) -> None:
    monkeypatch.setattr(Probing, "confirm", lambda _probing, _addresses: problem)


def let_measurements_find(monkeypatch: pytest.MonkeyPatch, problem: str | None) -> list[tuple[int, int]]:
    measured: list[tuple[int, int]] = []

    def measure(_settings: object, _database: object, version: int, reference: int, _largest: float) -> str | None:
        measured.append((version, reference))
        return problem

    monkeypatch.setattr(post_deploy_monitor, "why_slower", measure)
    return measured


def kinds(database: Database) -> list[str]:
    """Of the events after that of the first deployment."""
    return [event.kind for event in events.newest(database, 20)][-2::-1]


@pytest.mark.parametrize(
    ("counted", "suspicion"),
    [
        (VersionStatistics(0, LEAST_FAILURES - 1, 0, 0), ""),
        (VersionStatistics(0, LEAST_FAILURES, 0, 0), "the model failed 5 of 5 live calls"),
        (VersionStatistics(245, 5, 0, 0), ""),
        (VersionStatistics(240, 5, 0, 0), "the model failed 5 of 245 live calls"),
    ],
)
def test_failures_are_suspicious_from_a_number_and_a_share_on(counted: VersionStatistics, suspicion: str) -> None:
    assert suspicious_failures(counted) == suspicion


@pytest.mark.parametrize(
    ("counted", "before", "suspicion"),
    [
        (VersionStatistics(200, 0, 100, 8.0), BEFORE, ""),
        (VersionStatistics(200, 0, 100, 8.4), BEFORE, "a lone text takes 8.4 ms, 2.1 times as long as before"),
        (VersionStatistics(200, 0, 100, 1.0), BEFORE, ""),
        # Too few calls, then or now, to know how long one takes.
        (VersionStatistics(200, 0, 99, 80.0), BEFORE, ""),
        (VersionStatistics(200, 0, 100, 80.0), BEFORE_TOO_FEW, ""),
    ],
)
def test_slowness_is_suspicious_from_enough_lone_calls_on(
    counted: VersionStatistics, before: VersionStatistics, suspicion: str
) -> None:
    assert suspicious_slowness(counted, before) == suspicion


@pytest.mark.parametrize("found", ["", None])
def test_live_failures_alone_roll_nothing_back_and_are_reported_once(
    served: Served,
    database: Database,
    statistics: CallStatistics,
    monkeypatch: pytest.MonkeyPatch,
    found: str | None,
) -> None:
    promotion.promote(served.settings, database, 2, "by the test")
    for _ in range(200):
        statistics.failed(2)
    let_probes_find(monkeypatch, found)
    watch = PostDeployMonitor(served.settings, statistics)
    for _ in range(3):
        watch.look(database)
    assert served.repository.deployed() == 2
    # Where nothing can be said now, there is nothing to report yet.
    assert kinds(database) == (["promoted", "suspected"] if found == "" else ["promoted"])


def test_a_probe_that_fails_rolls_back_though_no_live_call_did(
    served: Served, database: Database, statistics: CallStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    promotion.promote(served.settings, database, 2, "by the test")
    let_probes_find(monkeypatch, "it fails on 20 of 20 texts")
    PostDeployMonitor(served.settings, statistics).look(database)
    assert served.repository.deployed() == 1
    message = events.newest(database, 1)[0].message
    assert message == "Rolled back from version 2 to 1: in the monitoring window, it fails on 20 of 20 texts."


@pytest.mark.parametrize(
    ("problem", "deployed", "told"),
    [
        ("it takes long", 1, "rolled-back"),
        ("", 2, "suspected"),
        (None, 2, "suspected"),
    ],
)
def test_slow_live_calls_have_it_measured_apart_once(
    served: Served,
    database: Database,
    statistics: CallStatistics,
    monkeypatch: pytest.MonkeyPatch,
    problem: str | None,
    deployed: int,
    told: str,
) -> None:
    for _ in range(LEAST_CALLS):
        statistics.answered(1, 4.0)
    promotion.promote(served.settings, database, 2, "by the test")
    for _ in range(LEAST_CALLS):
        statistics.answered(2, 40.0)
    let_probes_find(monkeypatch, "")
    measured = let_measurements_find(monkeypatch, problem)
    for _ in range(3):
        PostDeployMonitor(served.settings, statistics).look(database)
    assert measured == [(2, 1)]
    assert served.repository.deployed() == deployed
    assert kinds(database) == ["promoted", told]


def test_calls_of_an_earlier_term_of_the_same_version_do_not_count(
    served: Served, database: Database, statistics: CallStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_probes_find(monkeypatch, "")
    promotion.promote(served.settings, database, 2, "by the test")
    for _ in range(200):
        statistics.failed(2)
    promotion.roll_back(served.settings, database, "by the test")
    promotion.promote(served.settings, database, 2, "by the test")
    statistics.answered(2, None)
    PostDeployMonitor(served.settings, statistics).look(database)
    assert "suspected" not in kinds(database)


def test_a_version_that_did_well_has_proven_itself_when_its_time_is_over(
    served: Served, database: Database, statistics: CallStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_probes_find(monkeypatch, "")
    watch = PostDeployMonitor(served.settings, statistics)
    watch.look(database)
    with database.transaction() as session:
        deployments.finish(session, deployments.intend(session, 2, 1, "by the test").id, 1_800)
    watch.look(database)
    assert kinds(database) == []
    with database.transaction() as session:
        session.execute(update(Deployment).values(monitored_until=now(session) - timedelta(seconds=1)))
    for _ in range(2):
        watch.look(database)
    assert kinds(database) == ["monitored"]
    event = events.newest(database, 1)[0]
    assert event.version == 2
    assert event.message == "Version 2 passed its monitoring window of 30 minutes."


def test_the_window_ends_in_time_and_calls_count_though_the_clock_was_set_back(
    served: Served, database: Database, statistics: CallStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_probes_find(monkeypatch, "")
    promotion.promote(served.settings, database, 2, "by the test")
    with database.transaction() as session:
        deployment = deployments.serving(session)
        assert deployment is not None
        assert deployment.monitored_until is not None
        deployment.started_at += timedelta(days=1)
        deployment.monitored_until += timedelta(days=1)
    watch = PostDeployMonitor(served.settings, statistics)
    watch.look(database)
    for _ in range(200):
        statistics.failed(2)
    watch.look(database)
    assert kinds(database) == ["promoted", "suspected"]
    real = time.monotonic
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: real() + 1_800))
    watch.look(database)
    assert kinds(database) == ["promoted", "suspected", "monitored"]


@pytest.mark.parametrize(
    ("before", "after", "deployed"),
    [(0.695, 0.73, 2), (0.85, 0.73, 1), (0.75, 0.73, 1)],
)
def test_a_threshold_that_the_previous_version_missed_as_well_rolls_nothing_back(
    served: Served,
    database: Database,
    statistics: CallStatistics,
    monkeypatch: pytest.MonkeyPatch,
    before: float,
    after: float,
    deployed: int,
) -> None:
    let_probes_find(monkeypatch, "")
    _checked(database, 1, before)
    promotion.promote(served.settings, database, 2, "by the test")
    _checked(database, 2, after)
    PostDeployMonitor(served.settings, statistics).look(database)
    assert served.repository.deployed() == deployed


def _checked(database: Database, version: int, accuracy: float) -> None:
    job = jobs.enqueue(database, jobs.CHECK, "by the test")
    problems = [f"accuracy on validation is {accuracy}"] if accuracy < 0.8 else []
    figures = {"texts": 500, "accuracy": accuracy, "macro_f1": accuracy}
    result = {"version": version, "stale": bool(problems), "problems": problems, "validation": figures}
    with database.transaction() as session:
        jobs.end(session, job.id, jobs.Outcome(jobs.SUCCEEDED, result))


def test_what_was_seen_in_an_earlier_term_says_nothing_about_a_later_one(
    served: Served, database: Database, statistics: CallStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither failed calls, even if the clock is set meanwhile, nor a probe that failed."""
    probings: list[Probing] = []

    def confirm(probing: Probing, _addresses: object) -> str:
        probings.append(probing)
        return ""

    monkeypatch.setattr(Probing, "confirm", confirm)
    watch = PostDeployMonitor(served.settings, statistics)
    promotion.promote(served.settings, database, 2, "by the test")
    watch.look(database)
    for _ in range(200):
        statistics.failed(2)
    # Between two looks, it was rolled back and promoted again.
    promotion.roll_back(served.settings, database, "by the test")
    promotion.promote(served.settings, database, 2, "by the test")
    watch.look(database)
    monkeypatch.setattr(post_deploy_monitor, "now", lambda session: now(session) + timedelta(minutes=20))
    watch.look(database)
    first, second, third = probings
    assert first is not second
    assert second is third
    assert "suspected" not in kinds(database)
