import time
from pathlib import Path

import grpc
import httpx
import pytest

import gateway.inference.deployed_model
from serving.client.replicas import PROBE
from tests.gateway.conftest import WATCH_INTERVAL_S, make_app, served, until
from tests.gateway.fake_triton import FakeTriton

BODIES = {"/predict/live": {"text": "fine"}, "/predict/batch": {"texts": ["fine", "good"]}}
each_route = pytest.mark.parametrize("path", BODIES)


def assert_unavailable(response: httpx.Response) -> None:
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["type"] == "urn:sentiment:problem:model-unavailable"


def is_ready(http: httpx.Client) -> bool:
    response = http.get("/health/ready")
    if response.status_code == 200:
        assert response.json() == {"status": "ready"}
        return True
    assert_unavailable(response)
    return False


def test_dead_triton_is_told_at_once_and_its_return_is_noticed(http: httpx.Client, triton: FakeTriton) -> None:
    until(lambda: is_ready(http))
    triton.stop()
    try:
        start = time.monotonic()
        for path, body in BODIES.items():
            assert_unavailable(http.post(path, json=body))
        assert not is_ready(http)
        assert http.get("/health/live").json() == {"status": "alive"}
        assert time.monotonic() - start < 2
    finally:
        triton.start()
    until(lambda: is_ready(http))
    assert http.post("/predict/live", json=BODIES["/predict/live"]).status_code == 200


def reason(http: httpx.Client) -> str:
    response = http.get("/health/ready")
    assert_unavailable(response)
    detail: str = response.json()["detail"]
    return detail


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (grpc.StatusCode.NOT_FOUND, "no version of the model loaded"),
        (grpc.StatusCode.INTERNAL, "the model fails"),
        (grpc.StatusCode.UNAVAILABLE, "Triton is down"),
        (grpc.StatusCode.UNIMPLEMENTED, "the gateway's log"),
    ],
)
def test_health_says_why_the_model_cannot_answer_and_nothing_of_triton_itself(
    http: httpx.Client, triton: FakeTriton, status: grpc.StatusCode, expected: str
) -> None:
    until(lambda: is_ready(http))
    triton.error = status
    until(lambda: not is_ready(http))
    assert expected in reason(http)
    assert "secret" not in reason(http)


def test_health_tells_one_that_starts_from_one_that_fails(triton: FakeTriton, tmp_path: Path) -> None:
    triton.held = {PROBE}
    triton.may_answer.clear()
    with (
        served(make_app(triton, tmp_path)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
    ):
        assert "has not responded yet" in reason(http)
        triton.may_answer.set()
        until(lambda: is_ready(http))


@each_route
@pytest.mark.parametrize("status", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL])
def test_model_that_is_not_loaded_or_broken_is_unavailable(
    http: httpx.Client, triton: FakeTriton, path: str, status: grpc.StatusCode
) -> None:
    triton.error = status
    assert_unavailable(http.post(path, json=BODIES[path]))
    until(lambda: not is_ready(http))


def test_model_whose_python_died_is_not_ready_though_triton_says_so_and_nobody_asks_for_answers(
    http: httpx.Client, triton: FakeTriton
) -> None:
    until(lambda: is_ready(http))
    triton.error = grpc.StatusCode.INTERNAL
    until(lambda: not is_ready(http))
    triton.error = None
    until(lambda: is_ready(http))
    assert not triton.calls


def test_busy_model_is_ready(http: httpx.Client, triton: FakeTriton) -> None:
    until(lambda: is_ready(http))
    triton.delay_s = 10 * WATCH_INTERVAL_S
    end = time.monotonic() + triton.delay_s
    while time.monotonic() < end:
        assert is_ready(http)


def test_model_that_never_answers_is_not_ready(
    http: httpx.Client, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    until(lambda: is_ready(http))
    monkeypatch.setattr(gateway.inference.deployed_model, "PROBE_TIMEOUT_S", 0.05)
    triton.delay_s = 0.2
    until(lambda: not is_ready(http))


def test_model_is_asked_for_a_sign_of_life_no_more_often_the_more_are_interested(
    http: httpx.Client, triton: FakeTriton
) -> None:
    start, before = time.monotonic(), triton.probes
    for _ in range(200):
        is_ready(http)
    assert triton.probes - before <= (time.monotonic() - start) / WATCH_INTERVAL_S + 1


@each_route
def test_slow_triton_is_a_timeout(http: httpx.Client, triton: FakeTriton, path: str) -> None:
    until(lambda: is_ready(http))
    triton.held = {"fine"}
    triton.may_answer.clear()
    response = http.post(path, json=BODIES[path], headers={"X-Request-Timeout-Ms": "100"})
    triton.may_answer.set()
    assert response.status_code == 504
    assert response.json()["type"] == "urn:sentiment:problem:model-timeout"


@each_route
def test_unexpected_error_tells_no_internals(triton: FakeTriton, tmp_path: Path, path: str) -> None:
    def fail(_texts: list[str]) -> None:
        triton.inference_error = grpc.StatusCode.DATA_LOSS

    with (
        served(make_app(triton, tmp_path)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
    ):
        until(lambda: is_ready(http))
        triton.before_answer = fail  # the error is to meet the request, not a sign of life before it
        response = http.post(path, json=BODIES[path])
    assert response.status_code == 500
    assert response.json() == {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "detail": "An unexpected error occurred; see the server's log.",
    }
