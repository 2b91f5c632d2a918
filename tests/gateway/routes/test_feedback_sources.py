"""Sources of feedback by HTTP: rows keep who sent them, bounds are told, and an admin lists, releases and withdraws."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

import gateway.auth.key_cache
from common.settings import Settings
from gateway.http.schemas import FeedbackSource, StoredFeedback
from gateway.load_control.admission import UnderWay
from gateway.main import create_app
from serving.client.call_statistics import CallStatistics
from storage.api_keys import Scope, add_key
from storage.lazy_database import Storage
from storage.versions import GateVerdict, add_verdicts
from tests.gateway.conftest import ADMIN_KEY, served, until
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.routes.test_feedback import FEEDBACK, ROW, Gateway
from tests.gateway.routes.test_wrong_requests import assert_problem
from tests.lifecycle.conftest import Served, publish

ADMIN = {"X-API-Key": ADMIN_KEY}
SOURCES = "/feedback/sources"


@contextmanager
def run(triton: FakeTriton, bundle: Path, directory: Path, **given: Any) -> Iterator[Gateway]:
    models = Served(directory, 0, {})
    publish(models, bundle, 1)
    models.repository.deploy(1)
    settings = Settings(
        triton_url=f"127.0.0.1:{triton.port}",
        state_dir=directory / "state",
        model_repository=directory / "triton_repo",
        admin_key=SecretStr(ADMIN_KEY),
        **given,
    )
    storage = Storage(settings)
    app = create_app(settings, storage, CallStatistics(), UnderWay())
    with served(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        yield Gateway(http, storage.open(), models.repository)
    storage.close()


@pytest.fixture
def gateway_(
    triton: FakeTriton, bert_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Gateway]:
    monkeypatch.setattr(gateway.auth.key_cache, "REFRESH_S", 0.05)
    with run(triton, bert_bundle, tmp_path) as running:
        yield running


def key_of(running: Gateway, name: str, *scopes: Scope) -> dict[str, str]:
    key = {"X-API-Key": add_key(running.database, name, scopes)}
    until(lambda: running.http.get("/nothing", headers=key).status_code == 404)
    return key


def sources(running: Gateway) -> dict[str, dict[str, Any]]:
    found = running.http.get(SOURCES).json()
    for item in found:
        FeedbackSource.model_validate(item, strict=True)
    return {item["source"]: item for item in found}


def test_each_row_keeps_who_sent_it_and_is_trusted_or_not(gateway_: Gateway) -> None:
    website = key_of(gateway_, "website", Scope.FEEDBACK)
    for headers in ({}, website, ADMIN):
        assert gateway_.http.post(FEEDBACK, json=ROW, headers=headers).status_code == 201
    assert [row.source for row in gateway_.kept()] == ["anonymous", "key:website", "admin"]
    assert {name: item["trusted"] for name, item in sources(gateway_).items()} == {
        "anonymous": False,
        "key:website": False,
        "admin": True,
    }


def test_two_callers_may_use_the_same_idempotency_key(gateway_: Gateway) -> None:
    callers = [{}, ADMIN, *(key_of(gateway_, name, Scope.FEEDBACK) for name in ("one", "two"))]
    for number, caller in enumerate(callers):
        row = {**ROW, "text": f"text {number}"}
        for _ in range(2):
            answer = gateway_.http.post(FEEDBACK, json=row, headers={**caller, "Idempotency-Key": "1"})
            assert answer.status_code == 201
    assert len(gateway_.kept()) == len(callers)


def test_who_sends_too_much_is_refused_and_others_are_not(
    triton: FakeTriton, bert_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with run(triton, bert_bundle, tmp_path, feedback_rows=1_000) as running:
        ten = {"feedback": [{**ROW, "text": f"text {number}"} for number in range(10)]}
        assert running.http.post(FEEDBACK, json=ten).status_code == 201
        refused = running.http.post(FEEDBACK, json=ROW)
        problem = assert_problem(refused, 429, "feedback-quota")
        assert "can send 10, a hundredth of SENTIMENT_FEEDBACK_ROWS" in problem["detail"]
        assert 80_000 < int(refused.headers["retry-after"]) <= 86_400
        many = {"feedback": [{**ROW, "text": f"text {number}"} for number in range(990)]}
        assert running.http.post(FEEDBACK, json=many, headers=ADMIN).status_code == 201
        refused = running.http.post(FEEDBACK, json=ROW, headers=ADMIN)
        assert_problem(refused, 503, "storage-full")
        assert refused.headers["retry-after"] == "60"
        assert "SENTIMENT_FEEDBACK_ROWS=1000 rows of feedback are stored; `python app.py feedback" in caplog.text
        assert len(running.kept()) == 1_000
        assert running.http.post("/feedback/withdraw?source=anonymous&erase=true", headers=ADMIN).is_success
        assert running.http.post(FEEDBACK, json=ROW, headers=ADMIN).status_code == 201


def test_stored_texts_are_listed_by_pages_for_a_key_for_texts(gateway_: Gateway) -> None:
    texts = key_of(gateway_, "anna", Scope.TEXTS)
    rows = [{**ROW, "text": f"text {number}"} for number in range(7)]
    assert gateway_.http.post(FEEDBACK, json={"feedback": rows}).status_code == 201
    assert gateway_.http.post(FEEDBACK, json=ROW, headers=ADMIN).status_code == 201
    found: list[StoredFeedback] = []
    before: dict[str, int] = {}
    while page := gateway_.http.get(
        FEEDBACK, params={"source": "anonymous", "limit": 3, **before}, headers=texts
    ).json():
        found += [StoredFeedback.model_validate_json(httpx.Response(200, json=row).content) for row in page]
        before = {"before": found[-1].id}
    assert [row.text for row in found] == [f"text {number}" for number in range(6, -1, -1)]
    assert {row.source for row in found} == {"anonymous"}
    assert_problem(gateway_.http.get(FEEDBACK, params={"limit": 1_001}, headers=texts), 422, "invalid-fields")


def test_an_admin_puts_a_source_into_quarantine_and_releases_it(gateway_: Gateway) -> None:
    assert gateway_.http.post(FEEDBACK, json=ROW).status_code == 201
    for action, quarantined in (("quarantine", True), ("release", False)):
        answer = gateway_.http.post(f"{SOURCES}/{action}", params={"source": "anonymous"}, headers=ADMIN)
        assert answer.status_code == 200
        assert (answer.json()["source"], answer.json()["quarantined"]) == ("anonymous", quarantined)
        assert sources(gateway_)["anonymous"]["quarantined"] is quarantined
        kinds = [event["kind"] for event in gateway_.http.get("/events").json()]
        assert kinds[0] == ("source-quarantined" if quarantined else "source-released")
    for action in ("quarantine", "release"):
        path = f"{SOURCES}/{action}"
        assert_problem(gateway_.http.post(path, params={"source": "key:x"}, headers=ADMIN), 404, "not-found")
        assert_problem(gateway_.http.post(path, headers=ADMIN), 422, "invalid-fields")


def test_a_row_or_a_source_is_withdrawn(gateway_: Gateway) -> None:
    for text in ("one", "two", "three"):
        assert gateway_.http.post(FEEDBACK, json={**ROW, "text": text}).status_code == 201
    first = gateway_.kept()[0].id

    def withdraw(**given: object) -> httpx.Response:
        params = {name: str(value) for name, value in given.items()}
        return gateway_.http.post("/feedback/withdraw", params=params, headers=ADMIN)

    assert withdraw(id=first).json() == {"withdrawn": 1}
    assert withdraw(id=first).json() == {"withdrawn": 0}
    assert withdraw(source="anonymous", erase="true").json() == {"withdrawn": 3}
    assert {row.text for row in gateway_.kept()} == {""}
    assert_problem(withdraw(id=first + 99), 404, "not-found")
    assert_problem(withdraw(source="key:x"), 404, "not-found")
    for wrong in ({}, {"id": "x"}, {"id": 1, "source": "anonymous"}, {"id": 1, "erase": "yes"}):
        assert_problem(withdraw(**wrong), 422, "invalid-fields")


def test_a_key_for_reading_reads_no_text_of_the_gates(gateway_: Gateway) -> None:
    examples = [{"text": "a private letter", "right": "Positive", "champion": "Negative", "candidate": "Positive"}]
    figures = {"champion": 1, "validation texts": 9, "differ": 1, "examples": examples}
    assert gateway_.http.get("/models").is_success  # which gets to know the version
    add_verdicts(gateway_.database, 1, [GateVerdict("trial", True, "It answered.", figures)])
    for headers in ({}, key_of(gateway_, "prometheus", Scope.READ)):
        answer = gateway_.http.get("/models", headers=headers)
        assert answer.json()[0]["gates"][0]["figures"]["differ"] == 1
        assert "private letter" not in answer.text
    for headers in (ADMIN, key_of(gateway_, "anna", Scope.TEXTS, Scope.READ)):
        assert "private letter" in gateway_.http.get("/models", headers=headers).text
