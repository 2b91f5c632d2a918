"""Predictions are counted in the database, also when it was away for a time."""

import asyncio
import math
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import text as sql

from common.settings import Settings
from gateway.grpc_port.guards import GatewayGuard
from gateway.grpc_port.messages import RefusedCallError
from gateway.load_control.admission import UnderWay
from gateway.load_control.backlog import Backlog
from gateway.load_control.rate_limit import CallerLimits
from gateway.monitoring import traffic
from gateway.monitoring.metrics import Metrics
from gateway.monitoring.recent_rates import Pulse
from storage.database import Database
from storage.lazy_database import Storage
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


def test_calls_over_grpc_count_too(database: Database, tmp_path: Path) -> None:
    """One is answered, one refused for a limit, and one fails by no fault of its caller."""
    metrics, unused = Metrics(), cast(Any, None)
    guard = GatewayGuard(unused, frozenset(), CallerLimits("3/hour"), UnderWay(), unused, metrics)

    async def call(texts: int, error: Exception | None = None) -> None:
        with suppress(RefusedCallError, OSError):
            async with guard.admitted("tests", "unix:", [5] * texts, 5):
                if error:
                    raise error

    async def scenario() -> None:
        await call(1)  # before the gateway has started
        guard.predictor = cast(Any, SimpleNamespace(batch_backlog=Backlog(math.inf)))
        await call(2)
        await call(1, OSError())
        await call(4)
        settings = Settings(state_dir=tmp_path / "state")
        await traffic.TrafficCount(Storage(settings), Pulse(metrics), metrics).write()

    asyncio.run(scenario())
    assert traffic_since(database, LONG_AGO) == Counts(4, 2, 8)


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
