import time
from pathlib import Path

import grpc
import httpx
import pytest
from pydantic import SecretStr

from common.settings import Settings
from gateway.load_control.admission import UnderWay
from gateway.main import create_app
from serving.client.call_statistics import CallStatistics, VersionStatistics
from storage.lazy_database import Storage
from tests.gateway.conftest import ADMIN_KEY, served, until
from tests.gateway.fake_triton import FakeTriton


def test_calls_are_counted_by_version_and_only_failures_of_the_model_as_failed(
    triton: FakeTriton, tmp_path: Path
) -> None:
    statistics = CallStatistics()
    settings = Settings(
        triton_url=f"127.0.0.1:{triton.port}", state_dir=tmp_path / "state", admin_key=SecretStr(ADMIN_KEY)
    )
    app = create_app(settings, Storage(settings), statistics, UnderWay())
    with served(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        until(lambda: http.get("/health/ready").is_success)
        before = statistics.of(1)
        for number in range(20):
            assert http.post("/predict/live", json={"text": f"lone {number}"}).is_success
        lone = statistics.of(1)
        # A probe of whether Triton is well may fall beside some, which then are not lone.
        assert lone.lone_calls - before.lone_calls >= 10
        assert lone.lone_ms > 0

        http.post("/predict/batch", json={"texts": ["one", "two"]})
        assert statistics.of(1).answered > lone.answered
        assert statistics.of(1).failed == 0

        triton.version = 2
        assert http.post("/predict/live", json={"text": "of the second"}).headers["x-model-version"] == "2"
        assert statistics.of(2).answered >= 1

        # What callers bring about is no failure of the model's: too little time, a text that it refuses, a client
        # that leaves, a Triton that is full or down.
        triton.delay_s = 0.2
        hurried = http.post("/predict/live", json={"text": "hurried"}, headers={"X-Request-Timeout-Ms": "20"})
        assert hurried.status_code == 504
        with pytest.raises(httpx.ReadTimeout):
            http.post("/predict/live", json={"text": "leaving"}, timeout=0.1)
        triton.delay_s = 0
        triton.refused = {"refused"}
        assert http.post("/predict/live", json={"text": "refused"}).status_code == 422
        triton.error = grpc.StatusCode.RESOURCE_EXHAUSTED
        assert http.post("/predict/live", json={"text": "too much"}).status_code == 503
        triton.error = None
        until(lambda: http.get("/health/ready").is_success)
        triton.stop()
        try:
            assert http.post("/predict/live", json={"text": "lost"}).status_code == 503
        finally:
            triton.start()
        until(lambda: http.get("/health/ready").is_success)
        assert statistics.of(2).failed == 0

        triton.error = grpc.StatusCode.INTERNAL
        assert http.post("/predict/live", json={"text": "failed"}).status_code == 503
        assert statistics.of(2).failed >= 1
        assert statistics.of(1).failed == 0
        assert statistics.of(2, time.monotonic()) == VersionStatistics(0, 0, 0, 0.0)
