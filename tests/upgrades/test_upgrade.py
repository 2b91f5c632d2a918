"""What an older release wrote starts and works with this one, and so does what a newer release added to."""

import json
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from storage import events, jobs
from storage.events import EventKind
from storage.tables import Job
from tests.e2e.conftest import wait_for
from tests.gateway.console.conftest import OWN, sign_in
from tests.lifecycle.conftest import serving
from tests.upgrades.conftest import OldState
from tests.upgrades.make_state import FEEDBACK, IMPORTED, REQUEST_NAME
from trainer.record import TrainingRecord
from trainer.tracking import Tracking

pytestmark = pytest.mark.full

ROUTES = ("/models", "/events", "/metrics", "/jobs/2", "/jobs/4", "/models/1/differences")
PAGES = (
    "/console/quality",
    "/console/versions",
    "/console/versions/compare?left=1&right=2",
    "/console/versions/differences?version=1",
    "/console/events",
    "/console/events.csv",
)
MADE_BY_THE_RELEASE = {"key-added", "feedback-imported", "checked", "promoted", "shadow-started", "release-stopped"}
NEWER = {"tomorrow": {"a": [1, None, {"b": "c"}]}}
"""What a newer release may add to an object in JSON."""
MAPS = ("drift", "f1_by_label", "metrics", "parts")
"""Objects whose names are no fields: kinds of drift, labels, metrics, lengths of texts."""


def test_the_state_of_an_older_release_serves_checks_and_rolls_back(old_state: OldState) -> None:
    due = round(time.time()) + 25 * 60
    old_state.set_due(due)
    assert {path.stat().st_mode & 0o777 for path in (old_state.state_dir, old_state.database_file)} == {0o755, 0o644}
    with serving(old_state):
        as_client = {"X-API-Key": old_state.client_key}
        answer = old_state.ask("POST", "/predict/live", json={"text": "love the bright screen"}, headers=as_client)
        assert answer.json()["predictions"]["label"] == {"0": "Positive"}, answer.text
        assert answer.headers["X-Model-Version"] == "2"
        wait_for(lambda: "The scheduler runs here" in old_state.log, 30, "the scheduler")
        assert f"the next check is at {datetime.fromtimestamp(due, UTC):%H:%M} UTC" in old_state.log
        assert old_state.due() == due
        assert "WARNING SENTIMENT_TRITON_HTTP is no " in old_state.log
        for name in (".sentiment", ".env", "model", "triton_repo"):
            assert (old_state.directory / name).stat().st_mode & 0o077 == 0, name

        # The client that got no answer, and sends its feedback again.
        told = {"feedback": [{"text": text, "label": label} for text, label in FEEDBACK]}
        again = {**as_client, "Idempotency-Key": REQUEST_NAME}
        sent = old_state.ask("POST", "/feedback", json=told, headers=again)
        assert sent.is_success, sent.text
        sources = old_state.ask("GET", "/feedback/sources").json()
        assert {source["source"]: source["rows"] for source in sources} == {
            "legacy:api": len(FEEDBACK),
            "import:imported.csv": len(IMPORTED),
        }
        told_of = {event["kind"] for event in old_state.ask("GET", "/events").json()}
        assert told_of >= MADE_BY_THE_RELEASE
        models = old_state.ask("GET", "/models").json()
        assert [(model["version"], len(model["gates"]), model["published"]) for model in models] == [
            (2, 7, True),
            (1, 0, True),
        ]

        checked = old_state.app("check", "--json")
        assert checked.returncode == 0, checked.stderr
        found = json.loads(checked.stdout)
        assert (found["version"], found["stale"], found["feedback"]["texts"] > 5) == (2, False, True)
        assert old_state.ask("POST", "/models/rollback").json()["version"] == 1
        assert old_state.version() == 1
        wait_for(lambda: Tracking(old_state.settings).aliased() == {1}, 60, "MLflow's alias to follow")
        assert old_state.due() == due
    quick = replace(old_state, environment={**old_state.environment, "SENTIMENT_EPOCHS": "1"})
    trained = quick.app("train", timeout_s=300)
    assert trained.returncode == 0, trained.stderr
    assert TrainingRecord.load(old_state.directory / "model").version == 3


def test_what_a_newer_release_added_is_passed_over_after_a_step_back(old_state: OldState) -> None:
    add_what_is_newer(old_state)
    old_state.set_due(time.time() - 3 * 3600)
    with serving(old_state):
        assert old_state.version() == 2
        with closing(old_state.database()) as database:
            before = jobs.last_ended(database, jobs.CHECK)
            assert before is not None

            def check() -> Job | None:
                return jobs.get(database, before.id + 1)

            wait_for(lambda: (job := check()) is not None and job.ended_at is not None, 120, "the check that is due")
            job = check()
            assert job is not None
            assert (job.reason, job.state, job.error) == ("the hourly check", "succeeded", "")
            assert job.result["version"] == 2
            assert not events.newest_of(database, [EventKind.ROLLED_BACK], 1)
        assert old_state.due() > time.time()
        for path in ROUTES:
            assert (answer := old_state.ask("GET", path)).is_success, answer.text
        with httpx.Client(base_url=old_state.url, headers=OWN, timeout=30) as browser:
            sign_in(browser, old_state.admin_key)
            for page in PAGES:
                assert (answer := browser.get(page)).is_success, answer.text
        assert "Traceback" not in old_state.log


def add_what_is_newer(state: OldState) -> None:
    """Add fields to every kind of JSON that is kept with fixed names."""
    for description in (state.directory / "triton_repo" / "sentiment").glob("*/bundle.json"):
        bundle = json.loads(description.read_text())
        proofs = [{**proof, **NEWER} for proof in bundle["proofs"]]
        description.write_text(json.dumps({**bundle, **NEWER, "proofs": proofs}))
    record = state.directory / "model" / "training.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **NEWER}))
    with closing(sqlite3.connect(state.database_file)) as connection, connection:
        for table, column in (
            ("jobs", "result"),
            ("events", "figures"),
            ("releases", "figures"),
            ("verdicts", "figures"),
            ("versions", "bundle"),
        ):
            rows = connection.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
            assert rows
            for row, value in rows:
                newer = json.dumps(_with_what_is_newer(json.loads(value)))
                connection.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (newer, row))


def _with_what_is_newer(value: Any, is_map: bool = False) -> Any:
    if not isinstance(value, dict):
        return value
    items = {name: _with_what_is_newer(item, name in MAPS) for name, item in value.items()}
    return items if is_map else {**items, **NEWER}
