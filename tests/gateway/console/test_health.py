import json
import re
from typing import Any

import grpc
import pytest

import gateway.console.health
from errors import PipelineError
from lifecycle import promotion
from settings import Settings
from storage import jobs
from tests.gateway.conftest import until
from tests.gateway.console.conftest import PART, Page
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.test_feedback import Gateway

HEALTH = "/console/health"


def shown(console: Gateway) -> str:
    return Page(console.http.get(HEALTH, headers=PART)).text


def test_it_tells_what_serves_since_when_and_what_the_loop_does(console: Gateway) -> None:
    assert "since when is not known" in shown(console)
    promotion.reconcile(
        Settings(state_dir=console.repository.root.parent / "state", model_repository=console.repository.root),
        console.database,
    )
    told = shown(console)
    assert re.search(r"Serves Version 1 since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", told)
    assert "The loop Rests" in told
    job = jobs.enqueue(console.database, jobs.RETRAIN, "a test")
    jobs.begin(console.database, job.id)
    jobs.set_step(console.database, job.id, "training")
    assert f"retrain: training (job {job.id})" in shown(console)


def test_it_tells_how_predictions_do(console: Gateway) -> None:
    for number in range(20):
        console.http.post("/predict/live", json={"text": f"text {number % 10}"})
    until(lambda: "50.0 % answered from memory" in shown(console))
    told = shown(console)
    assert re.search(r"Requests [1-9]\d*\.\d /s", told)
    assert re.search(r"Median \d+(\.\d+)? ms", told)
    assert "Errors 0.00 % 0 since the start" in told
    assert "Queue 0" in told


def test_the_chart_has_the_last_minutes(console: Gateway) -> None:
    until(lambda: len(chart(console)["x"]) > 0)
    told = chart(console)
    assert [series["name"] for series in told["series"]] == ["requests/s", "p99, ms"]
    assert all(len(series["values"]) == len(told["x"]) for series in told["series"])


def chart(console: Gateway) -> dict[str, Any]:
    text = console.http.get(HEALTH).text
    match = re.search(r'<script type="application/json" id="health-data">(.*?)</script>', text)
    assert match is not None
    told: dict[str, Any] = json.loads(match[1])
    return told


def test_it_says_why_the_model_cannot_answer(console: Gateway, triton: FakeTriton) -> None:
    triton.error = grpc.StatusCode.UNAVAILABLE
    until(lambda: "New texts cannot be answered" in shown(console))
    assert "Triton is down, starting, or cannot be reached." in shown(console)


def test_it_is_shown_while_the_database_is_down(console: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise PipelineError("no database")

    monkeypatch.setattr(gateway.console.health, "_deployed", fail)
    told = shown(console)
    assert "The database does not answer" in told
    assert "Serves Version 1" in told
