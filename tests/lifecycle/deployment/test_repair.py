"""A version that cannot serve, or whose record is damaged, gives way to what served before."""

import json
from collections.abc import Iterator

import pytest

from common.errors import PipelineError
from lifecycle.deployment import promotion
from lifecycle.deployment.repair import replace_broken, restore_record
from serving.model_repo.bundle import DESCRIPTION, TOKENIZER
from serving.model_repo.variants import FLOAT_GRAPH
from storage import deployments, events
from storage.database import Database
from tests.lifecycle.conftest import Served


@pytest.fixture
def database(served: Served) -> Iterator[Database]:
    opened = served.database()
    promotion.reconcile(served.settings, opened)
    promotion.promote(served.settings, opened, 2, "by test")
    yield opened
    opened.close()


def rollback_target(database: Database) -> int | None:
    with database.reading() as session:
        return deployments.rollback_target(session)


def test_a_damaged_record_is_written_again(served: Served, database: Database) -> None:
    config = served.repository.model / "config.pbtxt"
    whole = config.read_text()
    config.write_text(whole[: len(whole) // 3])
    restore_record(served.settings, database)
    assert config.read_text() == whole
    (event,) = events.newest(database, 1)
    assert "config.pbtxt names no deployed version" in event.message
    assert "version 2 is deployed" in event.message
    restore_record(served.settings, database)
    assert len(events.newest(database, 10, "reconciled")) == 1


def test_a_version_that_is_not_complete_gives_way_to_the_one_before(served: Served, database: Database) -> None:
    (served.repository.version_directory(2) / TOKENIZER).unlink()
    replace_broken(served.settings, database, by_loading=False)
    assert served.repository.deployed() == 1
    assert rollback_target(database) is None  # not to the broken one
    (mail,) = [mail for mail in events.due_mails(database) if "Rolled back" in mail.subject]
    assert f"version 2 is broken: {served.repository.version_directory(2)} is no complete version" in mail.subject


@pytest.mark.parametrize("spoilt", ["graph", "labels"])
def test_a_version_that_does_not_load_gives_way_once_it_was_tried(
    served: Served, database: Database, spoilt: str
) -> None:
    directory = served.repository.version_directory(2)
    if spoilt == "graph":
        graph = directory / FLOAT_GRAPH
        graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])
    else:
        content = json.loads((directory / DESCRIPTION).read_text())
        content["labels"].append("Neutral")
        (directory / DESCRIPTION).write_text(json.dumps(content))
    replace_broken(served.settings, database, by_loading=False)
    assert served.repository.deployed() == 2
    replace_broken(served.settings, database, by_loading=True)
    assert served.repository.deployed() == 1
    if spoilt == "labels":
        assert (
            "gives 2 probabilities for a text, and bundle.json names 3 labels" in events.newest(database, 1)[0].message
        )


def test_a_version_that_loads_stays(served: Served, database: Database) -> None:
    replace_broken(served.settings, database, by_loading=True)
    assert served.repository.deployed() == 2


def test_a_version_that_is_promoted_meanwhile_stays(
    served: Served, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def promoted_meanwhile(*_: object) -> str:
        served.repository.deploy(1)
        return "it does not load."

    monkeypatch.setattr("lifecycle.deployment.repair.why_not_loadable", promoted_meanwhile)
    replace_broken(served.settings, database, by_loading=True)
    assert served.repository.named() == 1
    assert events.newest(database, 1, "rolled-back") == []


def test_where_nothing_else_can_serve_it_is_said(served: Served, database: Database) -> None:
    for version in (1, 2):
        (served.repository.version_directory(version) / TOKENIZER).unlink()
    with pytest.raises(PipelineError, match="Version 2 is broken, and so is every version"):
        replace_broken(served.settings, database, by_loading=True)
    assert served.repository.named() == 2
