"""What goes on with a release while versions are deployed, and ended, at the same moment; nothing is loaded."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lifecycle import promotion, release
from lifecycle.promotion import LEASE_S, DeploymentError
from lifecycle.release_alarms import LEAST_TEXTS
from lifecycle.release_steering import ReleaseSteering
from lifecycle.retention import remove_old_versions
from storage import events, leases, releases
from storage.database import Database, now
from storage.releases import CANARY
from storage.tables import Release
from tests.lifecycle.conftest import Served, hollow_bundle, make_served


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promotion, "LEASE_WAIT_S", 0.1)
    monkeypatch.setattr(release, "LEASE_WAIT_S", 0.1)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    """Version 1 of three is deployed, and no Triton runs."""
    settings = {"SENTIMENT_RELEASE_STEPS": "10,50", "SENTIMENT_KEEP_VERSIONS": "2"}
    return make_served(tmp_path, hollow_bundle(tmp_path), 3, **settings)


@pytest.fixture
def database(served: Served) -> Iterator[Database]:
    opened = served.database()
    promotion.reconcile(served.settings, opened)
    yield opened
    opened.close()


@pytest.fixture
def steering(served: Served, database: Database) -> ReleaseSteering:
    """Of a canary of version 2, which has just begun."""
    release.start(served.settings, database, 2, CANARY, "by the test")
    return ReleaseSteering(served.settings)


def last(database: Database) -> Release:
    with database.reading() as session:
        found = releases.last(session)
    assert found is not None
    return found


def do_well(database: Database) -> None:
    """Have the step's time be over, and enough texts compared in it."""
    part = {"texts": LEAST_TEXTS, "differ": 0, "champion": 45.0, "challenger": 45.0, "squares": 0.0}
    releases.add_findings(database, last(database).id, {"answered": LEAST_TEXTS, "parts": {"all": part}}, [], True)
    let_time_pass(database)


def let_time_pass(database: Database) -> None:
    with database.transaction() as session:
        running = releases.running(session)
        assert running is not None
        running.step_started_at = now(session).replace(year=2020)


def test_each_step_needs_texts_of_its_own_and_after_the_last_one_it_is_promoted(
    served: Served, database: Database, steering: ReleaseSteering
) -> None:
    do_well(database)
    steering.look(database)
    assert releases.share_of(last(database)) == 0.5
    let_time_pass(database)
    steering.look(database)
    assert (last(database).state, served.repository.deployed()) == ("running", 1)
    do_well(database)
    steering.look(database)
    assert (last(database).state, served.repository.deployed()) == ("promoted", 2)
    steering.look(database)
    assert not served.repository.has_challenger


def test_a_promotion_waits_for_another_deployment_and_does_not_undo_it(
    served: Served, database: Database, steering: ReleaseSteering
) -> None:
    do_well(database)
    steering.look(database)
    do_well(database)
    with leases.held(database, leases.DEPLOYING, LEASE_S):
        steering.look(database)
        assert last(database).state == "running"
    served.repository.deploy(3)
    with pytest.raises(DeploymentError, match="Version 1 serves no longer; version 3 does"):
        promotion.promote(served.settings, database, 2, "it did well", only_from=1)
    steering.look(database)
    assert (last(database).state, served.repository.deployed()) == ("stopped", 3)
    assert last(database).outcome == "version 3 serves now, instead of 1"


def test_what_is_being_promoted_cannot_be_stopped_any_more(database: Database, steering: ReleaseSteering) -> None:
    steering.look(database)
    with leases.held(database, leases.RELEASING, LEASE_S), pytest.raises(DeploymentError, match="is being promoted"):
        release.stop(database, 2, "by the test")
    assert release.stop(database, 2, "by the test").state == "stopped"


def test_an_alarm_takes_it_back_and_its_files_away(
    served: Served, database: Database, steering: ReleaseSteering
) -> None:
    releases.add_findings(database, last(database).id, {"failed": 20, "failed_in_a_row": 20}, [], True)
    steering.look(database)
    assert last(database).state == "taken-back"
    assert events.newest(database, 1)[0].kind == "taken-back"
    steering.look(database)
    assert not served.repository.has_challenger
    assert 2 in served.repository.published()


def test_old_versions_are_removed_but_none_that_is_tried_or_about_to_be(
    served: Served, database: Database, steering: ReleaseSteering
) -> None:
    promotion.promote(served.settings, database, 3, "by the test")
    assert last(database).state == "stopped"
    assert served.repository.has_challenger_of(2)  # as it is before its release is written down
    assert remove_old_versions(served.settings, database, set()) == []
    steering.look(database)
    assert remove_old_versions(served.settings, database, set()) == [2]
