"""Retention: old versions go, but never one that serves, is gone back to, is being deployed or has an alias."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lifecycle.deployment import promotion
from lifecycle.jobs.retention import remove_old_versions
from serving.model_repo.bundle import Bundle
from storage import deployments, events, leases
from storage.database import Database
from storage.tables import Version
from storage.versions import GateVerdict, add_verdicts, add_version
from tests.lifecycle.conftest import Served, hollow_bundle, make_served

VERSIONS = 6


@dataclass
class Case:
    """What is known of the versions 1 to 6, and which of them stay."""

    keep: int
    stay: set[int]
    serving: int = 6
    previous: int | None = 5
    intended: tuple[int, int] | None = None
    aliased: set[int] = field(default_factory=set)
    rejected: set[int] = field(default_factory=set)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return make_served(tmp_path, hollow_bundle(tmp_path), VERSIONS)


@pytest.fixture
def database(served: Served) -> Iterator[Database]:
    opened = served.database()
    yield opened
    opened.close()


def _prepare(served: Served, database: Database, case: Case) -> None:
    served.repository.deploy(case.serving)
    with database.transaction() as session:
        for version in served.repository.published():
            add_version(session, Bundle.load(served.repository.version_directory(version)))
        serving = deployments.intend(session, case.serving, case.previous, "by the test")
        deployments.finish(session, serving.id, 0)
        if case.intended:
            deployments.intend(session, *case.intended, "by the test")
    for version in case.rejected:
        add_verdicts(
            database,
            version,
            [GateVerdict("comparison", False, "worse", {}), GateVerdict("slices", True, "not worse", {})],
        )
    for version in {1, 2, 3, 4, 5, 6} - case.rejected:
        add_verdicts(database, version, [GateVerdict("comparison", True, "not worse", {})])


@pytest.mark.parametrize(
    "case",
    [
        Case(keep=6, stay={1, 2, 3, 4, 5, 6}),
        Case(keep=3, stay={4, 5, 6}),
        Case(keep=3, serving=2, previous=1, stay={1, 2, 6}),
        Case(keep=2, serving=2, previous=1, stay={1, 2}),
        Case(keep=3, serving=2, previous=1, aliased={3, 9}, stay={1, 2, 3}),
        Case(keep=2, intended=(4, 3), stay={3, 4, 5, 6}),
        Case(keep=4, serving=2, previous=1, rejected={5, 6}, stay={1, 2, 3, 4}),
        Case(keep=5, serving=2, previous=1, rejected={5, 6}, stay={1, 2, 3, 4, 6}),
        Case(keep=2, rejected={6, 5}, stay={5, 6}),
        Case(keep=2, previous=None, stay={5, 6}),
        # What to go back to has been removed by hand.
        Case(keep=2, previous=7, stay={5, 6}),
    ],
    ids=str,
)
def test_the_newest_versions_stay_and_those_that_are_needed(served: Served, database: Database, case: Case) -> None:
    _prepare(served, database, case)
    settings = served.settings.model_copy(update={"keep_versions": case.keep})
    removed = remove_old_versions(settings, database, case.aliased)
    assert served.repository.published() == case.stay
    assert set(removed) == set(range(1, VERSIONS + 1)) - case.stay
    assert served.repository.deployed() == case.serving
    assert remove_old_versions(settings, database, case.aliased) == []


def test_a_removed_version_leaves_nothing_on_the_disk_and_is_known_still(served: Served, database: Database) -> None:
    _prepare(served, database, Case(keep=5, stay=set()))
    settings = served.settings.model_copy(update={"keep_versions": 5})
    leftover = served.repository.model / ".9.removed"
    leftover.mkdir()
    (leftover / "of a removal that was cut off").touch()
    assert remove_old_versions(settings, database, set()) == [1]
    assert sorted(path.name for path in served.repository.model.iterdir()) == ["2", "3", "4", "5", "6", "config.pbtxt"]
    with database.reading() as session:
        assert session.get_one(Version, 1).removed_at is not None
        assert session.get_one(Version, 2).removed_at is None
    found = events.newest(database, 10)
    assert [(event.kind, event.version) for event in found] == [("version-removed", 1), ("version-removed", 9)]
    assert events.due_mails(database) == []


def test_nothing_goes_while_another_process_deploys(
    served: Served, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be about to record that it needs a version."""
    monkeypatch.setattr(promotion, "LEASE_WAIT_S", 0.1)
    _prepare(served, database, Case(keep=2, stay=set()))
    settings = served.settings.model_copy(update={"keep_versions": 2})
    deploying = leases.new_holder()
    assert leases.take(database, leases.DEPLOYING, deploying, 60)
    assert remove_old_versions(settings, database, set()) == []
    assert len(served.repository.published()) == VERSIONS
    leases.give_back(database, leases.DEPLOYING, deploying)
    assert len(remove_old_versions(settings, database, set())) == VERSIONS - 2
