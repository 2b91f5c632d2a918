import json
import re
from typing import Any

import grpc
import pytest

import gateway.console.pages.health
from common.errors import PipelineError
from common.periodic import PeriodicTask
from common.settings import Settings
from lifecycle.deployment import promotion
from storage import events, jobs
from storage.events import EventKind
from tests.gateway.conftest import ADMIN_KEY, until
from tests.gateway.console.conftest import PART, Page
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.routes.test_feedback import Gateway

HEALTH = "/console/health"


def shown(console: Gateway) -> str:
    return Page(console.http.get(HEALTH, headers=PART)).text


def test_it_tells_what_serves_since_when_and_what_the_loop_does(console: Gateway) -> None:
    assert "deployment time unknown" in shown(console)
    promotion.reconcile(
        Settings(state_dir=console.repository.root.parent / "state", model_repository=console.repository.root),
        console.database,
    )
    told = shown(console)
    assert re.search(r"Deployed Version 1 since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", told)
    assert "Jobs None" in told
    job = jobs.enqueue(console.database, jobs.RETRAIN, "a test")
    jobs.begin(console.database, job.id)
    jobs.set_step(console.database, job.id, "training")
    assert f"Jobs Retrain job {job.id}: training" in shown(console)


def test_it_tells_how_predictions_do(console: Gateway) -> None:
    for number in range(20):
        console.http.post("/predict/live", json={"text": f"text {number % 10}"})
    until(lambda: "50.0 % of texts" in shown(console))
    told = shown(console)
    assert re.search(r"Requests [1-9]\d*\.\d /s", told)
    assert re.search(r"Median \d+(\.\d+)? ms", told)
    assert "Errors 0.00 % 0 failed requests since the start" in told
    assert "Queue 0 requests" in told


def test_predictions_of_the_page_try_count_too(console: Gateway) -> None:
    def of_try() -> float:
        return float(re.search(r"([\d.]+) texts/s", shown(console))[1])  # type: ignore[index]

    before = of_try()
    lines = "\n".join(f"line {number}" for number in range(100))
    console.http.post("/console/try", data={"text": lines, "lines": "on"}, headers=PART)
    until(lambda: of_try() > before)
    until(lambda: re.search(r"Slowest, at most \d+(\.\d+)? ms of \d+ requests?", shown(console)) is not None)


def test_the_chart_has_the_last_minutes(console: Gateway) -> None:
    until(lambda: len(chart(console)["x"]) > 0)
    told = chart(console)
    assert [(series["name"], series["unit"]) for series in told["series"]] == [
        ("requests", "/s"),
        ("99 % within", "ms"),
    ]
    assert [series["axis"] for series in told["series"]] == ["requests per second", "99 % answered within (ms)"]
    assert all(len(series["values"]) == len(told["x"]) for series in told["series"])


def chart(console: Gateway) -> dict[str, Any]:
    text = console.http.get(HEALTH).text
    match = re.search(r'<script type="application/json" id="health-data">(.*?)</script>', text)
    assert match is not None
    told: dict[str, Any] = json.loads(match[1])
    return told


def test_it_says_why_the_model_cannot_answer(console: Gateway, triton: FakeTriton) -> None:
    triton.error = grpc.StatusCode.UNAVAILABLE
    until(lambda: "The model does not respond" in shown(console))
    assert "Triton is down, starting, or cannot be reached." in shown(console)


def test_it_is_shown_while_the_database_is_down(console: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise PipelineError("no database")

    monkeypatch.setattr(gateway.console.pages.health, "_deployed", fail)
    told = shown(console)
    assert "The database does not respond" in told
    assert "Deployed Version 1" in told


def test_it_tells_that_checks_go_on_with_the_kept_data_and_stays_ready(console: Gateway) -> None:
    promotion.reconcile(
        Settings(state_dir=console.repository.root.parent / "state", model_repository=console.repository.root),
        console.database,
    )
    assert "The data files" not in shown(console)
    message = "The data files cannot be used; checks go on with the data of version 1.\n  train.csv is empty"
    with console.database.transaction() as session:
        events.record(session, EventKind.DATA_UNFIT, message, version=1)
    assert re.search(
        r"The data files cannot be used since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: The data files cannot be used; "
        r"checks go on with the data of version 1\. train\.csv is empty",
        shown(console),
    )
    assert console.http.get("/health/ready").status_code == 200
    with console.database.transaction() as session:
        events.record(session, EventKind.DATA_FIT, "The data files can be used again.")
    assert "The data files" not in shown(console)


def test_tasks_that_keep_failing_are_named_without_secrets(console: Gateway) -> None:
    task = PeriodicTask("a task of the test")
    try:
        for number in range(2):
            assert "Background tasks keep failing" not in shown(console)
            with task.attempt():
                raise ValueError(f"no entry for {ADMIN_KEY} in <try {number}>\nof many")
        assert re.search(
            r"Background tasks keep failing a task of the test, since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: "
            r"ValueError: no entry for … in <try 1> They",
            shown(console),
        )
    finally:
        task.close()
    assert "Background tasks keep failing" not in shown(console)
