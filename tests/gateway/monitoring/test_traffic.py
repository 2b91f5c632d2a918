"""Predictions are counted in the database, also when it was away for a time."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text as sql

from gateway.monitoring import traffic
from storage.database import Database
from storage.traffic import Counts, traffic_since
from tests.gateway.conftest import gateway_client, until
from tests.gateway.fake_triton import FakeTriton

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def test_what_was_answered_is_counted_at_the_end(triton: FakeTriton, tmp_path: Path, database: Database) -> None:
    with gateway_client(triton, tmp_path) as http:
        for _ in range(2):
            http.post("/predict/live", json={"text": "fine"})
        http.post("/predict/batch", json={"texts": ["fine", "terrible"]})
        http.get("/health/live")
        assert traffic_since(database, LONG_AGO) is None
    assert traffic_since(database, LONG_AGO) == Counts(3, 0, 4)


def test_what_could_not_be_written_is_written_later(
    triton: FakeTriton, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "INTERVAL_S", 0.1)
    monkeypatch.setattr("common.periodic._FIRST_PAUSE_S", 0.1)
    with gateway_client(triton, tmp_path) as http:
        with database.transaction() as session:
            session.execute(sql("ALTER TABLE traffic RENAME TO elsewhere"))
        http.post("/predict/live", json={"text": "fine"})
        failures = 'sentiment_periodic_task_failures_total{task="traffic counts"} '
        until(lambda: f"{failures}0.0" not in http.get("/metrics").text)
        with database.transaction() as session:
            session.execute(sql("ALTER TABLE elsewhere RENAME TO traffic"))
        http.post("/predict/live", json={"text": "terrible"})
        until(lambda: traffic_since(database, LONG_AGO) == Counts(2, 0, 2))
