"""Deployments: what served when, and what is gone back to."""

from datetime import timedelta

import pytest
from sqlalchemy import select

from storage import deployments
from storage.database import Database
from storage.tables import Deployment


def _serve(database: Database, version: int, previous: int | None, reason: str = "by the test") -> Deployment:
    with database.transaction() as session:
        intention = deployments.intend(session, version, previous, reason)
    with database.transaction() as session:
        deployments.finish(session, intention.id, 0)
    return intention


def _serving(database: Database) -> Deployment:
    with database.reading() as session:
        serving = deployments.serving(session)
    assert serving is not None
    return serving


def _go_back(database: Database) -> int:
    with database.reading() as session:
        target = deployments.rollback_target(session)
        assert target is not None
        previous = deployments.previous_of(session, target)
    _serve(database, target, previous, "back")
    return target


def test_going_back_passes_over_what_was_gone_back_from(database: Database) -> None:
    with database.reading() as session:
        assert deployments.rollback_target(session) is None
    for version, previous in ((1, None), (2, 1), (3, 2)):
        _serve(database, version, previous)
    assert _go_back(database) == 2
    assert _go_back(database) == 1
    with database.reading() as session:
        assert deployments.rollback_target(session) is None
        assert [deployments.previous_of(session, version) for version in (1, 2, 3, 4)] == [None, 1, 2, None]
    # Promoted after all, it goes back to what it followed this time.
    _serve(database, 3, 1)
    with database.reading() as session:
        assert deployments.previous_of(session, 3) == 2
    assert _go_back(database) == 1


def test_an_intention_is_known_until_it_is_finished_or_undone(database: Database) -> None:
    _serve(database, 1, None)
    with database.transaction() as session:
        intention = deployments.intend(session, 2, 1, "it did not load")
    with database.reading() as session:
        assert [item.id for item in deployments.intended(session)] == [intention.id]
    assert _serving(database).version == 1
    with database.transaction() as session:
        deployments.undo(session, intention.id)
    assert _serving(database).version == 1
    with database.reading() as session:
        assert deployments.intended(session) == []
        assert deployments.of_version(session, 2) == []
        assert deployments.previous_of(session, 2) is None


def test_the_times_in_which_a_version_served_follow_on_each_other(database: Database) -> None:
    for version, previous, reason in ((1, None, "first"), (2, 1, "better"), (1, None, "back")):
        _serve(database, version, previous, reason)
    with database.reading() as session:
        first, third = deployments.of_version(session, 1)
        (second,) = deployments.of_version(session, 2)
    assert [reason for _, _, reason in (first, second, third)] == ["first", "better", "back"]
    assert first[0] < second[0] < third[0]
    assert (first[1], second[1], third[1]) == (second[0], third[0], None)


@pytest.mark.parametrize("monitor_s", [1800.0, 0.0])
def test_a_version_is_monitored_for_as_long_as_it_should(database: Database, monitor_s: float) -> None:
    with database.transaction() as session:
        intention = deployments.intend(session, 2, 1, "by the test")
        deployments.finish(session, intention.id, monitor_s)
    serving = _serving(database)
    assert serving.monitored_until == (serving.started_at + timedelta(seconds=monitor_s) if monitor_s else None)
    deployments.end_monitoring(database, serving.id)
    assert _serving(database).monitored_until is None


def test_the_alias_is_known_to_be_set_only_of_what_serves(database: Database) -> None:
    _serve(database, 1, None)
    _serve(database, 2, 1)
    deployments.mark_alias_set(database, 1)
    with database.reading() as session:
        assert not any(session.scalars(select(Deployment.alias_set)))
    deployments.mark_alias_set(database, 2)
    assert _serving(database).alias_set
    _serve(database, 1, None)
    assert not _serving(database).alias_set
