"""`/metrics`, read as Prometheus reads it, after real requests."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from common.settings import Settings
from gateway import main as gateway_main
from gateway.monitoring import scrape
from gateway.monitoring.request_log import OTHER_METHOD, OTHER_ROUTE
from storage import events, jobs
from storage.database import Database
from storage.events import EventKind
from tests.gateway.conftest import ADMIN_KEY, make_app, served, until
from tests.gateway.fake_triton import FakeTriton

REQUESTS = "http_server_request_duration_seconds_count"


@pytest.fixture
def gateway(triton: FakeTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A gateway of its own, so that all that is counted comes from one test; it keeps answers."""
    monkeypatch.setattr(gateway_main, "MAX_BYTES", 2**20)
    with (
        served(make_app(triton, tmp_path)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        until(lambda: client.get("/health/ready").is_success)
        yield client


def families(client: httpx.Client) -> dict[str, Metric]:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    parsed = list(text_string_to_metric_families(response.text))
    assert len({family.name for family in parsed}) == len(parsed), "a family is there twice"
    return {family.name: family for family in parsed}


def value(found: dict[str, Metric], name: str, **labels: str) -> float | None:
    samples = [
        sample.value
        for family in found.values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return samples[0] if samples else None


def requests_counted(found: dict[str, Metric], method: str, route: str, status: int) -> float | None:
    labels = {"http_request_method": method, "http_route": route, "http_response_status_code": str(status)}
    return value(found, REQUESTS, **labels)


def test_requests_are_counted_by_route_method_and_status(gateway: httpx.Client) -> None:
    for number in range(3):
        gateway.post("/predict/live", json={"text": f"text {number}"})
    gateway.post("/predict/live", json={"text": ""})
    gateway.get("/predict/live")
    gateway.get("/jobs/17", headers={"X-API-Key": ADMIN_KEY})
    for path in ("/nowhere", "/.env", "/jobs/1/2/3"):
        gateway.get(path)
    gateway.request("PROPFIND", "/health/live")
    found = families(gateway)
    assert requests_counted(found, "POST", "/predict/live", 200) == 3
    assert requests_counted(found, "POST", "/predict/live", 422) == 1
    assert requests_counted(found, "GET", "/predict/live", 405) == 1
    assert requests_counted(found, "GET", "/jobs/{job}", 404) == 1
    assert requests_counted(found, "GET", OTHER_ROUTE, 404) == 3
    routes = {sample.labels["http_route"] for sample in found["http_server_request_duration_seconds"].samples}
    assert not {"/nowhere", "/.env", "/jobs/17"} & routes
    assert "PROPFIND" not in gateway.get("/metrics").text
    assert OTHER_METHOD in gateway.get("/metrics").text
    assert value(found, "http_server_active_requests") == 1, "this very request"


def test_requests_under_way_wait_in_the_queue_or_in_calls(gateway: httpx.Client, triton: FakeTriton) -> None:
    triton.held = {"held"}
    triton.may_answer.clear()
    waiting = threading.Thread(target=gateway.post, args=("/predict/live",), kwargs={"json": {"text": "held"}})
    waiting.start()
    try:
        until(lambda: bool(triton.calls))
        found = families(gateway)
        assert value(found, "http_server_active_requests") == 2
        assert value(found, "sentiment_active_calls") in (1, 2)  # a probe may be beside it
    finally:
        triton.may_answer.set()
        waiting.join()
    found = families(gateway)
    assert value(found, "http_server_active_requests") == 1
    assert value(found, "sentiment_micro_batch_wait_seconds_count") == 1
    assert value(found, "sentiment_micro_batch_queue_length") == 0


def test_calls_texts_and_what_the_cache_knows(gateway: httpx.Client, triton: FakeTriton) -> None:
    before = families(gateway)
    gateway.post("/predict/batch", json={"texts": [f"good {number}" for number in range(20)]})
    gateway.post("/predict/live", json={"text": "good 7"})
    triton.refused = {"bad"}
    gateway.post("/predict/live", json={"text": "bad"})
    found = families(gateway)
    bucket = "sentiment_call_texts_bucket"
    assert value(found, bucket, le="16.0") == value(found, bucket, le="2.0")
    assert (value(found, bucket, le="32.0") or 0) - (value(found, bucket, le="16.0") or 0) == 1
    assert value(found, "sentiment_call_duration_seconds_count", outcome="refused") == 1
    assert (value(found, "sentiment_call_duration_seconds_count", outcome="answered") or 0) > (
        value(before, "sentiment_call_duration_seconds_count", outcome="answered") or 0
    )
    assert value(found, "sentiment_answers_total", label="Positive") == 20
    assert value(found, "sentiment_cache_hits_total") == 1
    assert value(found, "sentiment_cache_misses_total") == 21
    assert value(found, "sentiment_cache_texts") == 20
    assert 0 < (value(found, "sentiment_cache_bytes") or 0) < (value(found, "sentiment_cache_max_bytes") or 0)
    assert value(found, "sentiment_model_version") == 1
    assert value(found, "sentiment_model_ready") == 1
    assert (value(found, "process_resident_memory_bytes") or 0) > 1e7


def test_the_loop_as_the_database_knows_it(gateway: httpx.Client, tmp_path: Path) -> None:
    database = Database(Settings(state_dir=tmp_path / "state").database)
    figures = {"texts": 300, "accuracy": 0.9, "macro_f1": 0.89, "calibration_error": 0.03, "f1_by_label": {"A": 0.5}}
    try:
        check = jobs.enqueue(database, jobs.CHECK, "a test")
        jobs.begin(database, check.id)
        estimated = {"texts": 900, "accuracy": [0.8, 0.7, 0.9], "macro_f1": [0.75, 0.6, 0.85], "f1_by_label": {}}
        live = {"parts": {"all": estimated}, "problems": []}
        result = {"version": 3, "stale": True, "problems": ["x"], "validation": figures, "live": live}
        result["drift"] = {
            "texts": {"auc": [0.9, 0.85, 0.95], "live_words": [], "known_words": [], "alarm": "told apart"},
            "labels": {"distance": 0.02, "chance": 0.5, "alarm": ""},
        }
        with database.transaction() as session:
            jobs.end(session, check.id, jobs.Outcome(jobs.SUCCEEDED, result))
            events.record(session, EventKind.STALE, "Stale.")
        retraining = jobs.enqueue(database, jobs.RETRAIN, "a test")
        found = families(gateway)
        assert value(found, "sentiment_database_up") == 1
        assert value(found, "sentiment_check_accuracy", data="validation") == 0.9
        assert value(found, "sentiment_check_macro_f1", data="validation") == 0.89
        assert value(found, "sentiment_check_calibration_error", data="validation") == 0.03
        assert value(found, "sentiment_check_f1", data="validation", label="A") == 0.5
        assert value(found, "sentiment_estimated_accuracy", part="all", end="estimate") == 0.8
        assert value(found, "sentiment_estimated_macro_f1", part="all", end="high") == 0.85
        assert value(found, "sentiment_estimated_texts", part="all") == 900
        assert value(found, "sentiment_drift_alarm", kind="texts") == 1
        assert value(found, "sentiment_drift_alarm", kind="labels") == 0
        assert value(found, "sentiment_drift_text_auc", end="low") == 0.85
        assert value(found, "sentiment_drift_distance", kind="labels") == 0.02
        assert value(found, "sentiment_check_accuracy", data="live") is None
        assert value(found, "sentiment_check_stale") == 1
        assert value(found, "sentiment_check_version") == 3
        assert value(found, "sentiment_check_threshold", figure="accuracy") == 0.8
        assert value(found, "sentiment_jobs", kind="retrain", state="queued") == 1
        assert value(found, "sentiment_jobs", kind="check", state="running") == 0
        assert value(found, "sentiment_jobs_ended_total", kind="check", state="succeeded") == 1
        assert value(found, "sentiment_events_total", kind="stale") == 1
        assert value(found, "sentiment_outbox_mails") == 1
        assert 0 <= (value(found, "sentiment_outbox_oldest_age_seconds") or 0) < 60
        assert value(found, "sentiment_scheduler_running") == 0

        jobs.begin(database, retraining.id)
        found = families(gateway)
        assert value(found, "sentiment_jobs", kind="retrain", state="running") == 1
        assert value(found, "sentiment_job_started_timestamp_seconds", kind="retrain") is not None
    finally:
        database.close()


def test_a_database_that_hangs_or_fails_leaves_the_rest(
    gateway: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "DATABASE_WAIT_S", 0.2)
    assert value(families(gateway), "sentiment_database_up") == 1
    database = Database(Settings(state_dir=tmp_path / "state").database)
    with database.transaction() as session:
        session.execute(text("DROP TABLE outbox"))
    database.close()
    found = families(gateway)
    assert value(found, "sentiment_database_up") == 0
    assert requests_counted(found, "GET", "/metrics", 200) is not None
    assert "sentiment_outbox_mails" not in found

    may_answer = threading.Event()
    monkeypatch.setattr(scrape, "loop_metrics", lambda *_: may_answer.wait(20))
    try:
        found = families(gateway)
        assert value(found, "sentiment_database_up") == 0
        assert families(gateway)
    finally:
        may_answer.set()
