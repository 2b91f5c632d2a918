import json
import re
import time
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

import gateway.console.pages.quality
from common.errors import PipelineError
from gateway.console.pages.quality import LEAST_SPAN_S
from lifecycle.monitoring.live_quality import ALL
from storage import events, jobs
from storage.events import EventKind
from storage.jobs import Outcome
from storage.tables import Job
from tests.gateway.console.conftest import INJECTED, Page
from tests.gateway.routes.test_feedback import Gateway

QUALITY = "/console/quality"


def found(accuracy: float, **labels: float) -> dict[str, Any]:
    by_label = labels or {"Negative": 0.9, "Positive": 0.8}
    return {
        "texts": 300,
        "accuracy": accuracy,
        "macro_f1": accuracy - 0.01,
        "calibration_error": 0.03,
        "f1_by_label": by_label,
        "confusion": [[120, 30], [15, 135]],
    }


def check(console: Gateway, accuracy: float, **more: Any) -> None:
    job = jobs.enqueue(console.database, jobs.CHECK, "a test")
    jobs.begin(console.database, job.id)
    result = {"version": 3, "stale": False, "problems": [], "validation": found(accuracy)} | more
    with console.database.transaction() as session:
        jobs.end(session, job.id, Outcome(jobs.SUCCEEDED, result))


def chart(console: Gateway) -> dict[str, Any]:
    text = console.http.get(QUALITY).text
    match = re.search(r'<script type="application/json" id="quality-data">(.*?)</script>', text)
    assert match is not None
    told: dict[str, Any] = json.loads(match[1])
    return told


def test_before_the_first_check_it_says_when_that_comes(console: Gateway) -> None:
    assert (
        "No check has run yet. The deployed model is checked every 60 minutes" in Page(console.http.get(QUALITY)).text
    )


def test_figures_over_time_with_thresholds_and_marks(console: Gateway) -> None:
    with console.database.transaction() as session:
        events.record(session, EventKind.PROMOTED, "Long before.")
    check(console, 0.9)
    with console.database.transaction() as session:
        events.record(session, EventKind.PROMOTED, "Version 3 was promoted.")
        events.record(session, EventKind.CHECKED, "No mark.")
    check(console, 0.7, feedback=found(0.6), stale=True, problems=["accuracy on feedback is 0.6"])
    page = Page(console.http.get(QUALITY))
    assert "The last check found version 3 under a threshold" in page.text
    assert "accuracy on feedback is 0.6" in page.text
    assert "Version 3 was promoted." in page.text
    assert "No mark." not in page.text
    told = chart(console)
    assert all(len(series["values"]) == len(told["x"]) == 3 for series in told["series"])
    lines = {series["name"]: series["values"][1:] for series in told["series"]}
    assert lines == {
        "accuracy, validation": [0.9, 0.7],
        "macro F1, validation": [0.89, 0.69],
        "accuracy, feedback": [None, 0.6],
        "macro F1, feedback": [None, 0.59],
        "threshold of both": [0.8, 0.8],
    }
    assert [mark["sign"] for mark in told["marks"]] == ["▲"]
    assert 0 <= told["range"][0] < 0.59


def test_the_first_check_has_no_chart_and_the_second_one_of_the_last_hour(console: Gateway) -> None:
    check(console, 0.9)
    page = Page(console.http.get(QUALITY))
    assert "This was the first check. The second one begins a chart" in page.text
    assert not [item for item in page.all("div") if "data-chart" in item]
    check(console, 0.91)
    told = chart(console)
    assert told["x"][-1] - told["x"][0] == LEAST_SPAN_S
    assert told["x"][-1] <= time.time() + 1, "no part of it is in the future"
    threshold = told["series"][-1]
    assert threshold["name"] == "threshold of both"
    assert threshold["values"] == [0.8] * 3, "it is drawn over the whole axis"
    assert told["series"][0]["values"] == [None, 0.9, 0.91]


def test_checks_that_are_far_apart_fill_the_time_axis(console: Gateway) -> None:
    for _ in range(2):
        check(console, 0.9)
    with console.database.transaction() as session:
        first = session.scalars(select(Job).order_by(Job.id)).first()
        assert first is not None
        assert first.ended_at is not None
        first.ended_at -= timedelta(days=3)
    told = chart(console)
    assert len(told["x"]) == 2


def test_drift_of_feedback_is_told_as_what_it_is(console: Gateway) -> None:
    """The newest feedback is compared with older feedback, so it says nothing about a model that was always poor."""
    quiet = {"distance": 0.0, "chance": 0.4, "alarm": ""}
    problems = ["accuracy on feedback is 0.6"]
    check(console, 0.9, feedback=found(0.6), stale=True, problems=problems, drift={"feedback": quiet})
    told = Page(console.http.get(QUALITY)).text
    assert "Drift of feedback no alarm The newest feedback shows no more errors than the feedback before it" in told
    assert "training data" not in told
    check(console, 0.9, drift={"labels": quiet, "lengths": quiet, "feedback": quiet})
    told = Page(console.http.get(QUALITY)).text
    assert "No drift of live labels, lengths from the training data; the newest feedback shows no more" in told


def test_the_confusion_of_the_last_check(console: Gateway) -> None:
    many = {"texts": 12_300, "confusion": [[120, 30], [15, 12_135]]}
    check(console, 0.5, validation=found(0.85, **{INJECTED: 0.84, "Positive": 0.86}) | many)
    response = console.http.get(QUALITY)
    page = Page(response)
    assert page.runs_nothing_but_files()
    assert f"predicted {INJECTED}" in page.text
    assert re.search(r"Positive\s+15\s+12,135\s+0\.8600", page.text)
    assert re.search(r"validation 12,300 0\.8500", page.text)
    cells = [cell["class"] for cell in page.all("td") if re.search(r"\bq\d", cell.get("class") or "")]
    assert cells == ["number q3 right", "number q1", "number q0", "number q4 right"]


def test_what_is_estimated_of_live_texts_and_how_they_drift(console: Gateway) -> None:
    check(console, 0.9, drift={"labels": {"distance": 0.1, "chance": 0.4, "alarm": ""}})
    assert "Drift of labels no alarm" in Page(console.http.get(QUALITY)).text
    part = {"texts": 700, "accuracy": [0.85, 0.8, 0.88], "macro_f1": [0.84, 0.79, 0.87]}
    drift = {"labels": {"distance": 0.4, "chance": 0.0, "alarm": "More are Negative."}}
    check(console, 0.9, live={"parts": {ALL: part}, "problems": ["it seems low"]}, drift=drift)
    page = Page(console.http.get(QUALITY))
    assert "On 700 live texts, estimated without labels accuracy 0.8500 0.8000 to 0.8800" in page.text
    assert "it seems low" in page.text
    assert "Drift of labels 1 alarm More are Negative." in page.text
    lines = {series["name"]: series["values"] for series in chart(console)["series"]}
    assert lines["accuracy, live texts (estimated)"][1:] == [None, 0.85]


def test_while_the_database_is_down_the_page_says_so(console: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise PipelineError("the-secret")

    monkeypatch.setattr(gateway.console.pages.quality, "_read", fail)
    response = console.http.get(QUALITY)
    assert response.status_code == 503
    assert "the-secret" not in response.text
