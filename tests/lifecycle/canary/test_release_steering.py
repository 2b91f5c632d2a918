"""What goes on with a release while versions are deployed, and ended, at the same moment; nothing is loaded."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from common import clock
from lifecycle.canary import release, release_faults
from lifecycle.canary.release_alarms import LEAST_TEXTS
from lifecycle.canary.release_steering import ReleaseSteering
from lifecycle.deployment import promotion
from lifecycle.deployment.probe import Probing
from lifecycle.deployment.promotion import LEASE_S, DeploymentError
from lifecycle.jobs.retention import remove_old_versions
from storage import events, leases, releases
from storage.database import Database, now
from storage.releases import CANARY, SHADOW
from storage.tables import Figures, Release
from tests.lifecycle.conftest import Served, hollow_bundle, make_served, reconciled


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
    with reconciled(served) as opened:
        yield opened


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """What the pipeline's own texts, and a comparison of speed apart from callers, are made to find; nothing."""
    problems: dict[str, str | None] = {"probe": "", "speed": ""}
    monkeypatch.setattr(release_faults, "PROBE_INTERVAL_S", 0.0)
    monkeypatch.setattr(release_faults, "SUSPICIOUS_INTERVAL_S", 0.0)
    monkeypatch.setattr(Probing, "confirm", lambda _probing, _addresses: problems["probe"])
    monkeypatch.setattr(release_faults, "why_slower", lambda *_: problems["speed"])
    return problems


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


def test_a_step_ends_in_time_though_the_clock_was_set_back(
    database: Database, steering: ReleaseSteering, monkeypatch: pytest.MonkeyPatch
) -> None:
    do_well(database)
    with database.transaction() as session:
        running = releases.running(session)
        assert running is not None
        running.step_started_at = now(session) + timedelta(days=1)
    steering.look(database)
    assert releases.share_of(last(database)) == 0.1
    real = time.monotonic
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: real() + 600))
    steering.look(database)
    assert releases.share_of(last(database)) == 0.5


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
    with pytest.raises(DeploymentError, match="Version 1 is no longer deployed; version 3 is"):
        promotion.promote(served.settings, database, 2, "it did well", only_from=1)
    steering.look(database)
    assert (last(database).state, served.repository.deployed()) == ("stopped", 3)
    assert last(database).outcome == "version 3 is deployed now, instead of 1"


def test_what_is_being_promoted_cannot_be_stopped_any_more(database: Database, steering: ReleaseSteering) -> None:
    steering.look(database)
    with leases.held(database, leases.RELEASING, LEASE_S), pytest.raises(DeploymentError, match="is being promoted"):
        release.stop(database, 2, "by the test")
    assert release.stop(database, 2, "by the test").state == "stopped"


FAILING: Figures = {"failed": 20, "failed_in_a_row": 20}
SLOW: Figures = {"calls": 50, "slower": 50, "champion_ms": 500.0, "challenger_ms": 2_500.0}
DIFFERENT: Figures = {
    "parts": {"all": {"texts": 100, "differ": 100, "champion": 90.0, "challenger": 90.0, "squares": 0.0}}
}


@pytest.mark.parametrize(
    ("figures", "by_probe", "by_speed", "state", "held"),
    [
        (FAILING, "it fails", "", "taken-back", ""),
        ({}, "it fails", "", "taken-back", ""),
        (
            FAILING,
            "",
            "",
            "running",
            "errors: it failed on 20 texts in a row, but it classifies the pipeline's own",
        ),
        (FAILING, None, "", "running", ""),
        (SLOW, "", "it takes long", "taken-back", ""),
        (SLOW, "", "", "running", ""),
        (SLOW, "", None, "running", "latency: 50 of 50 calls took over 2 times as long"),
        (DIFFERENT, "", "", "running", "disagreement: 100 of 100 texts"),
        (DIFFERENT, "it fails", "", "taken-back", ""),
    ],
)
def test_it_is_taken_back_for_what_callers_cannot_influence_and_held_for_what_they_can(
    database: Database,
    steering: ReleaseSteering,
    found: dict[str, str | None],
    figures: Figures,
    by_probe: str | None,
    by_speed: str | None,
    state: str,
    held: str,
) -> None:
    found["probe"], found["speed"] = by_probe, by_speed
    releases.add_findings(database, last(database).id, figures, [], True)
    for _ in range(2):
        steering.look(database)
    release_ = last(database)
    assert release_.state == state
    assert releases.held_because(release_).startswith(held)
    assert bool(releases.held_because(release_)) == bool(held)
    told = [event.kind for event in events.newest(database, 10)]
    assert told.count("release-held") == bool(held)


def test_one_that_is_held_goes_on_by_an_administrator_alone(
    served: Served, database: Database, steering: ReleaseSteering
) -> None:
    do_well(database)
    steering.look(database)
    assert releases.share_of(last(database)) == 0.5
    releases.add_findings(database, last(database).id, DIFFERENT, [], True)
    steering.look(database)
    assert "disagreement" in releases.held_because(last(database))
    # What everybody can send does not release it.
    same = {"texts": 100_000, "differ": 0, "champion": 90_000.0, "challenger": 90_000.0, "squares": 0.0}
    releases.add_findings(database, last(database).id, {"answered": 100_000, "parts": {"all": same}}, [], True)
    let_time_pass(database)
    steering.look(database)
    assert (last(database).state, releases.share_of(last(database))) == ("running", 0.5)
    with pytest.raises(DeploymentError, match="is running"):
        release.start(served.settings, database, 2, SHADOW, "by the test")

    release.start(served.settings, database, 2, CANARY, "by the test")
    going_on = last(database)
    assert (releases.held_because(going_on), releases.share_of(going_on), going_on.figures) == ("", 0.5, {})
    with pytest.raises(DeploymentError, match="is running"):
        release.start(served.settings, database, 2, CANARY, "by the test")
    do_well(database)
    steering.look(database)
    assert (last(database).state, served.repository.deployed()) == ("promoted", 2)


def test_no_step_is_taken_before_it_answers_the_pipelines_own_texts(
    database: Database, steering: ReleaseSteering, found: dict[str, str | None]
) -> None:
    found["probe"] = None
    do_well(database)
    steering.look(database)
    assert releases.share_of(last(database)) == 0.1
    found["probe"] = ""
    steering.look(database)
    assert releases.share_of(last(database)) == 0.5


def test_one_that_is_at_fault_is_taken_back_and_its_files_away(
    served: Served, database: Database, steering: ReleaseSteering, found: dict[str, str | None]
) -> None:
    found["probe"] = "it fails on 20 of 20 texts"
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
