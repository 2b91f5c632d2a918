"""More is asked than can be answered: what is refused, how, and what goes on."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

import gateway.load_control.admission
import gateway.load_control.backlog
import gateway.main
from common.settings import Settings
from gateway.load_control.admission import UnderWay
from gateway.main import create_app
from serving.client.call_statistics import CallStatistics
from storage.lazy_database import Storage
from tests.gateway.conftest import ADMIN_KEY, served, until
from tests.gateway.fake_triton import FakeTriton

LIVE = "/predict/live"
BATCH = "/predict/batch"


class Gateway:
    def __init__(self, http: httpx.Client, under_way: UnderWay, port: int) -> None:
        self.http, self.under_way, self.port = http, under_way, port


def run_gateway(triton: FakeTriton, directory: Path, **settings: str) -> Iterator[Gateway]:
    used = Settings(
        triton_url=f"127.0.0.1:{triton.port}",
        state_dir=directory / "state",
        model_repository=directory / "triton_repo",
        admin_key=SecretStr(ADMIN_KEY),
        **settings,  # type: ignore[arg-type]
    )
    under_way = UnderWay()
    app = create_app(used, Storage(used), CallStatistics(), under_way)
    with served(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        until(lambda: http.get("/health/ready").is_success)
        yield Gateway(http, under_way, port)


@pytest.fixture(autouse=True)
def room_for_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.main, "MAX_BYTES", 1_000_000)


@pytest.fixture
def one(triton: FakeTriton, tmp_path: Path) -> Iterator[Gateway]:
    yield from run_gateway(triton, tmp_path)


@pytest.fixture
def limited(triton: FakeTriton, tmp_path: Path) -> Iterator[Gateway]:
    yield from run_gateway(triton, tmp_path, caller_limit="10/hour")


@pytest.fixture
def held(triton: FakeTriton, one: Gateway) -> Iterator[None]:
    """A text whose call Triton holds, so that there is work under way."""
    assert one.http.post(LIVE, json={"text": "known"}).is_success
    triton.held = {"held"}
    triton.may_answer.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(one.http.post, LIVE, json={"text": "held"})
        until(lambda: ["held"] in triton.calls)
        yield
        triton.may_answer.set()
        assert first.result().status_code == 200


@pytest.mark.usefixtures("held")
def test_what_is_over_the_bound_is_refused_and_what_is_known_answered(
    one: Gateway, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.load_control.backlog, "SHARE", 1e-9)
    refused = one.http.post(LIVE, json={"text": "one too many"})
    assert refused.status_code == 503
    assert refused.json()["type"] == "urn:sentiment:problem:overloaded"
    assert int(refused.headers["retry-after"]) >= 1
    assert one.http.post(LIVE, json={"text": "known"}).status_code == 200
    for path in ("/health/live", "/health/ready", "/metrics"):
        assert one.http.get(path).status_code == 200
    assert ["one too many"] not in triton.calls


def test_batches_that_fill_their_bound_leave_room_for_live_requests(
    one: Gateway, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton.held = {"batch 0"}
    triton.may_answer.clear()
    with ThreadPoolExecutor(2) as pool:
        batch = pool.submit(one.http.post, BATCH, json={"texts": [f"batch {number}" for number in range(5)]})
        until(lambda: bool(triton.calls))
        with monkeypatch.context() as patch:
            patch.setattr(gateway.load_control.backlog, "SHARE", 1e-9)
            assert one.http.post(BATCH, json={"texts": ["another"]}).status_code == 503
            assert one.http.post(LIVE, json={"text": "live"}).status_code == 200
        triton.may_answer.set()
        assert batch.result().status_code == 200


@pytest.mark.parametrize("allowed", ["x", "-1", "1.5", "9" * 10])
def test_a_time_that_is_none_is_told(one: Gateway, allowed: str) -> None:
    answer = one.http.post(LIVE, json={"text": "a"}, headers={"X-Request-Timeout-Ms": allowed})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "X-Request-Timeout-Ms"


def test_no_time_at_all_costs_no_call(one: Gateway, triton: FakeTriton) -> None:
    for path, body in ((LIVE, {"text": "late"}), (BATCH, {"texts": ["late"]})):
        answer = one.http.post(path, json=body, headers={"X-Request-Timeout-Ms": "0"})
        assert answer.status_code == 504
        assert answer.json()["type"] == "urn:sentiment:problem:model-timeout"
    assert not triton.calls


def test_a_client_that_leaves_is_noticed(one: Gateway, triton: FakeTriton) -> None:
    triton.held = {"left"}
    triton.may_answer.clear()
    body = b'{"text": "left"}'
    with socket.create_connection(("127.0.0.1", one.port)) as client:
        head = (
            f"POST {LIVE} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        client.sendall(head.encode() + body)
        until(lambda: ["left"] in triton.calls)
        assert one.under_way.count == 1
    until(lambda: one.under_way.count == 0)
    triton.may_answer.set()
    until(lambda: 'http_response_status_code="499"' in one.http.get("/metrics").text)


def test_a_caller_over_its_limit_is_told_when_to_come_again(limited: Gateway) -> None:
    assert limited.http.post(BATCH, json={"texts": [f"{number}" for number in range(9)]}).status_code == 200
    assert limited.http.post(LIVE, json={"text": "the tenth"}).status_code == 200
    refused = limited.http.post(LIVE, json={"text": "the eleventh"})
    assert refused.status_code == 429
    assert refused.json()["type"] == "urn:sentiment:problem:caller-limit"
    assert 1 <= int(refused.headers["retry-after"]) <= 3_600
    assert limited.http.get("/health/ready").status_code == 200


def test_a_caller_has_one_limit_whatever_address_of_this_machine_it_sends_from(limited: Gateway) -> None:
    statuses = []
    for source in range(2, 14):
        transport = httpx.HTTPTransport(local_address=f"127.0.0.{source}")
        with httpx.Client(base_url=limited.http.base_url, transport=transport) as http:
            statuses.append(http.post(LIVE, json={"text": f"from {source}"}).status_code)
    assert statuses == [200] * 10 + [429] * 2


def test_each_row_of_feedback_counts_towards_a_callers_limit(limited: Gateway) -> None:
    rows = [{"text": f"{number}", "label": "Positive"} for number in range(9)]
    # No model is deployed here whose labels could be read, but the rows were counted.
    assert limited.http.post("/feedback", json={"feedback": rows}).status_code == 503
    assert limited.http.post(LIVE, json={"text": "the tenth"}).status_code == 200
    assert limited.http.post(LIVE, json={"text": "the eleventh"}).status_code == 429


@pytest.mark.usefixtures("held")
def test_one_caller_cannot_take_all_requests_under_way(one: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.load_control.admission, "MOST_OF_ONE_CALLER", 1)
    refused = one.http.post(LIVE, json={"text": "one too many"})
    assert refused.status_code == 503
    assert refused.json()["type"] == "urn:sentiment:problem:overloaded"
    assert one.http.post(LIVE, json={"text": "another"}, headers={"X-API-Key": ADMIN_KEY}).status_code == 200


def test_an_ending_service_answers_what_it_accepted_and_refuses_the_rest(one: Gateway, triton: FakeTriton) -> None:
    triton.held = {"accepted"}
    triton.may_answer.clear()
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(one.http.post, LIVE, json={"text": "accepted"})
        until(lambda: ["accepted"] in triton.calls)
        one.under_way.ending = True
        for refused in (one.http.post(LIVE, json={"text": "new"}), one.http.get("/health/ready")):
            assert refused.status_code == 503
            assert refused.json()["type"] == "urn:sentiment:problem:ending"
            assert refused.headers["connection"] == "close"
            assert int(refused.headers["retry-after"]) >= 1
        assert one.http.get("/health/live").status_code == 200
        triton.may_answer.set()
        assert accepted.result().status_code == 200


def test_a_hanging_model_holds_nobody(one: Gateway, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.inference.deployed_model.PROBE_TIMEOUT_S", 0.2)
    triton.may_answer.clear()
    triton.before_answer = lambda texts: triton.held.update(texts)
    triton.held = {"Is this ready?"}
    waiting = threading.Thread(target=one.http.post, args=(LIVE,), kwargs={"json": {"text": "waits"}})
    waiting.start()
    waiting.join(8)
    assert not waiting.is_alive(), "it waits for its deadline, though the model is known to hang"
    assert one.http.post(LIVE, json={"text": "new"}).status_code == 503
    assert ["new"] not in triton.calls
    triton.before_answer = lambda _texts: None
    triton.held = set()
    triton.may_answer.set()
    until(lambda: one.http.post(LIVE, json={"text": "new"}).is_success)
