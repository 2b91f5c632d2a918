import threading
from pathlib import Path

import httpx
from pydantic import SecretStr

from gateway.admission import UnderWay
from gateway.main import create_app
from serving.call_statistics import CallStatistics
from settings import Settings
from storage.storage import Storage
from tests.gateway.conftest import ADMIN_KEY, served, until
from tests.gateway.fake_triton import FakeTriton


def test_calls_are_counted_by_the_version_that_answers(triton: FakeTriton, tmp_path: Path) -> None:
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

        triton.stop()
        try:
            failing = [
                threading.Thread(target=http.post, args=("/predict/live",), kwargs={"json": {"text": f"lost {number}"}})
                for number in range(3)
            ]
            for thread in failing:
                thread.start()
            for thread in failing:
                thread.join()
            assert statistics.of(2).failed >= 1
            assert statistics.of(1).failed == 0
        finally:
            triton.start()
