"""A version that bakes: what its calls say against it, and when it has proven itself."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from lifecycle.bake import LARGEST_FAILED_SHARE, LARGEST_SLOWDOWN, LEAST_CALLS, BakeWatch, problem_of
from serving.call_statistics import CallStatistics, VersionStatistics
from settings import Settings
from storage import deployments, events
from storage.database import Database, now
from storage.tables import Deployment

BEFORE = VersionStatistics(answered=1_000, failed=0, lone_calls=LEAST_CALLS, lone_ms=4.0)
BEFORE_TOO_FEW = VersionStatistics(answered=1_000, failed=0, lone_calls=LEAST_CALLS - 1, lone_ms=4.0)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'sentiment.db'}")
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("counted", "before", "problem"),
    [
        (VersionStatistics(0, LEAST_CALLS - 1, 0, 0), BEFORE, ""),
        (VersionStatistics(0, LEAST_CALLS, 0, 0), BEFORE, "100 of 100 calls failed"),
        (VersionStatistics(98, 2, 0, 0), BEFORE, ""),
        (VersionStatistics(97, 3, 0, 0), None, "3 of 100 calls failed"),
        (VersionStatistics(200, 0, 100, 8.0), BEFORE, ""),
        (VersionStatistics(200, 0, 100, 8.4), BEFORE, "a lone text takes 8.4 ms, 2.1 times as long as before"),
        (VersionStatistics(200, 0, 100, 1.0), BEFORE, ""),
        # Too few calls, then or now, to know how long one takes.
        (VersionStatistics(200, 0, 99, 80.0), BEFORE, ""),
        (VersionStatistics(200, 0, 100, 80.0), BEFORE_TOO_FEW, ""),
        (VersionStatistics(200, 0, 100, 80.0), None, ""),
    ],
)
def test_failures_and_slowness_count_from_enough_calls_on(
    counted: VersionStatistics, before: VersionStatistics | None, problem: str
) -> None:
    assert problem_of(counted, before) == problem
    assert (LARGEST_FAILED_SHARE, LARGEST_SLOWDOWN) == (0.02, 2.0)


def test_a_version_that_did_well_has_proven_itself_when_its_time_is_over(database: Database) -> None:
    watch = BakeWatch(Settings(bake_minutes=30), CallStatistics())
    watch.look(database)
    with database.transaction() as session:
        deployments.finish(session, deployments.intend(session, 2, 1, "by the test").id, 1_800)
    watch.look(database)
    assert events.newest(database, 10) == []
    with database.transaction() as session:
        session.execute(update(Deployment).values(bakes_until=now(session) - timedelta(seconds=1)))
    for _ in range(2):
        watch.look(database)
    (event,) = events.newest(database, 10)
    assert (event.kind, event.version) == ("baked", 2)
    assert event.message == "Version 2 did well for 30 minutes."
