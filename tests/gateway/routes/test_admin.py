import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter

import gateway.routes.admin
from common.settings import Settings
from gateway.http.schemas import Difference, Event, Job, Model, Release, Serving
from lifecycle.deployment import promotion
from serving.model_repo.bundle import DESCRIPTION
from storage import events, jobs, releases
from storage.events import EventKind
from storage.releases import DifferingText
from storage.versions import GateVerdict, add_verdicts
from tests.gateway.conftest import ADMIN_KEY, make_app, served, until
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.routes.test_feedback import Gateway, gateway_with_models
from tests.gateway.routes.test_wrong_requests import assert_problem

KEY = {"X-API-Key": ADMIN_KEY}
CHANGING = [
    "/models/2/promote",
    "/models/2/shadow",
    "/models/2/canary",
    "/models/2/stop",
    "/models/rollback",
    "/check",
    "/retrain",
    "/jobs/1/cancel",
]
READING = ["/models", "/events", "/jobs/1"]
NUMBERS_OF_NOTHING = ["0", "9", str(2**63 - 1), str(2**63), "9" * 30, "1" * 5_000]
KINDS = ", ".join(kind.value for kind in EventKind)

ANSWERS: dict[tuple[str, str], tuple[str, set[str], set[str]]] = {
    ("get", "/models"): ("Model", {"200"}, set()),
    ("post", "/models/{version}/promote"): ("Serving", {"200"}, {"404", "409"}),
    ("post", "/models/rollback"): ("Serving", {"200"}, {"409"}),
    ("post", "/models/{version}/shadow"): ("Release", {"200"}, {"404", "409"}),
    ("post", "/models/{version}/canary"): ("Release", {"200"}, {"404", "409"}),
    ("post", "/models/{version}/stop"): ("Release", {"200"}, {"404", "409"}),
    ("get", "/models/{version}/differences"): ("Difference", {"200"}, {"404", "422"}),
    ("post", "/check"): ("Job", {"200", "202"}, set()),
    ("post", "/retrain"): ("Job", {"202"}, set()),
    ("get", "/jobs/{job}"): ("Job", {"200"}, {"404"}),
    ("post", "/jobs/{job}/cancel"): ("Job", {"200"}, {"404"}),
    ("get", "/events"): ("Event", {"200"}, {"422"}),
}
"""Of each route: what it answers with, its statuses, and those of its problems but for those that each has."""


@contextmanager
def reconciled(triton: FakeTriton, directory: Path, bundle: Path) -> Iterator[Gateway]:
    with gateway_with_models(triton, directory, bundle) as looped:
        settings = Settings(state_dir=directory / "state", model_repository=looped.repository.root)
        promotion.reconcile(settings, looped.database)
        yield looped


@pytest.fixture
def looped(triton: FakeTriton, bert_bundle: Path, tmp_path: Path) -> Iterator[Gateway]:
    with reconciled(triton, tmp_path, bert_bundle) as looped:
        yield looped


@pytest.fixture
def without_triton(bert_bundle: Path, tmp_path: Path) -> Iterator[Gateway]:
    """While no Triton runs, what is deployed is what it will load; the lifecycle's tests have a real one."""
    down = FakeTriton()
    down.port = 1
    with reconciled(down, tmp_path, bert_bundle) as looped:
        yield looped


def told(response: httpx.Response, status: int, model: Any) -> Any:
    """The body, once it is seen to be what the document says, and no more."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    TypeAdapter(model).validate_json(response.content, strict=True, extra="forbid")
    return response.json()


def posted(looped: Gateway, path: str, status: int, model: Any) -> Any:
    return told(looped.http.post(path, headers=KEY), status, model)


@pytest.mark.parametrize(
    ("headers", "fault"),
    [
        ([], "is missing"),
        ([(b"x-api-key", b"")], "is missing"),
        ([(b"x-api-key", b"the-wrong-key")], "is wrong"),
        ([(b"x-api-key", "schlüssel".encode())], "is wrong"),
        ([(b"authorization", b"Bearer the-wrong-key")], "is wrong"),
        ([(b"authorization", b"Basic " + ADMIN_KEY.encode())], "is missing"),
    ],
    ids=str,
)
def test_what_changes_something_needs_the_key(looped: Gateway, headers: list[tuple[bytes, bytes]], fault: str) -> None:
    job = jobs.enqueue(looped.database, jobs.RETRAIN, "a test")
    for path in CHANGING:
        response = looped.http.post(path, headers=headers)
        problem = assert_problem(response, 401, "key-needed")
        assert problem["detail"] == f"The header X-API-Key {fault}; this needs an API key."
        assert response.headers["www-authenticate"] == "Bearer"
    assert looped.repository.deployed() == 1
    assert jobs.waiting(looped.database, jobs.CHECK) is None
    kept = jobs.get(looped.database, job.id)
    assert kept is not None
    assert kept.state == jobs.QUEUED


def test_what_only_tells_needs_no_key(looped: Gateway) -> None:
    jobs.enqueue(looped.database, jobs.RETRAIN, "a test")
    assert [looped.http.get(path).status_code for path in READING] == [200] * len(READING)


def test_a_version_is_tried_on_live_texts_and_what_differs_is_told(without_triton: Gateway) -> None:
    looped = without_triton
    begun = posted(looped, "/models/2/shadow", 200, Release)
    assert (begun["version"], begun["champion"], begun["mode"], begun["share"]) == (2, 1, "shadow", 0)
    assert posted(looped, "/models/2/canary", 200, Release)["share"] == 0.05
    with looped.database.reading() as session:
        running = releases.running(session)
    assert running is not None
    differing = DifferingText("fine", ("Positive", 0.91), ("Negative", 0.72))
    releases.add_findings(looped.database, running.id, {"answered": 1}, [differing], True)
    (item,) = told(looped.http.get("/models/2/differences", headers=KEY), 200, list[Difference])
    assert (item["text"], item["champion_label"], item["challenger_score"]) == ("fine", "Positive", 0.72)
    assert_problem(looped.http.get("/models/2/differences?limit=0", headers=KEY), 422, "invalid-fields")
    assert_problem(looped.http.get("/models/1/differences", headers=KEY), 404, "not-found")

    refused = assert_problem(looped.http.post("/models/2/canary", headers=KEY), 409, "conflict")
    assert "The canary of version 2 is running" in refused["detail"]
    models = {model["version"]: model for model in told(looped.http.get("/models"), 200, list[Model])}
    assert models[1]["release"] is None
    assert (models[2]["release"]["state"], models[2]["release"]["figures"]) == (
        "running",
        {"answered": 1, "failed_in_a_row": 0},
    )
    assert posted(looped, "/models/2/stop", 200, Release)["state"] == "stopped"
    assert_problem(looped.http.post("/models/2/stop", headers=KEY), 409, "conflict")
    assert_problem(looped.http.post("/models/1/canary", headers=KEY), 409, "conflict")
    assert_problem(looped.http.post("/models/9/canary", headers=KEY), 404, "not-found")


def test_versions_are_promoted_and_rolled_back(without_triton: Gateway) -> None:
    looped = without_triton
    assert posted(looped, "/models/2/promote", 200, Serving) == {"version": 2}
    assert looped.repository.deployed() == 2
    again = looped.http.post("/models/2/promote", headers=KEY)
    assert assert_problem(again, 409, "conflict")["detail"] == "Version 2 is already deployed."

    verdict = GateVerdict("accuracy", True, "It is better.", {"accuracy": 0.9})
    add_verdicts(looped.database, 2, [verdict])
    newest, oldest = told(looped.http.get("/models"), 200, list[Model])
    assert (newest["version"], newest["aliases"], newest["published"]) == (2, ["champion"], True)
    assert (oldest["version"], oldest["aliases"], oldest["published"]) == (1, ["previous"], True)
    assert newest["labels"] == ["Negative", "Positive"]
    assert newest["gates"] == [
        {"gate": "accuracy", "passed": True, "message": "It is better.", "figures": {"accuracy": 0.9}}
    ]
    assert [(time["to"], time["reason"]) for time in newest["served"]] == [(None, "by request")]
    assert [time["to"] for time in oldest["served"]] == [newest["served"][0]["from"]]

    assert posted(looped, "/models/rollback", 200, Serving) == {"version": 1}
    assert looped.repository.deployed() == 1
    refused = looped.http.post("/models/rollback", headers=KEY)
    assert assert_problem(refused, 409, "conflict")["detail"] == (
        "There is no previous version to roll back to. Version 2 was deployed before version 1 and was rolled back; "
        "to deploy it anyway: `python app.py promote 2`."
    )
    told_of = told(looped.http.get("/events"), 200, list[Event])
    assert [(event["kind"], event["version"]) for event in told_of] == [
        ("rolled-back", 1),
        ("promoted", 2),
        ("deployed", 1),
    ]


@pytest.mark.parametrize("number", NUMBERS_OF_NOTHING, ids=lambda number: number[:20])
def test_what_is_not_there_is_not_found(looped: Gateway, number: str) -> None:
    for response in (
        looped.http.get(f"/jobs/{number}"),
        looped.http.post(f"/jobs/{number}/cancel", headers=KEY),
        looped.http.post(f"/models/{number}/promote", headers=KEY),
    ):
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["type"] == "urn:sentiment:problem:not-found"
        assert response.json()["detail"].startswith("There is no ")
    assert looped.repository.deployed() == 1


@pytest.fixture
def recorded(looped: Gateway) -> list[int]:
    """The ids of events, the newest first; the oldest is that of the deployment."""
    ids = [event.id for event in events.newest(looped.database, 1)]
    for number, kind in enumerate([EventKind.CHECKED, EventKind.STALE, EventKind.CHECKED, EventKind.MONITORED]):
        with looped.database.transaction() as session:
            figures = {"accuracy": 0.5, "number": number}
            ids.append(events.record(session, kind, f"Event {number}.", figures, version=1).id)
    return ids[::-1]


def test_events_are_told_the_newest_first(looped: Gateway, recorded: list[int]) -> None:
    def asked(**query: object) -> list[int]:
        answer = told(looped.http.get("/events", params={**query}), 200, list[Event])  # type: ignore[dict-item]
        return [event["id"] for event in answer]

    assert asked() == asked(limit=1_000) == asked(before=2**62) == recorded
    assert asked(limit=2) == recorded[:2]
    assert asked(limit=2, before=recorded[1]) == recorded[2:4]
    assert asked(before=1) == []
    assert asked(kind="checked") == [recorded[1], recorded[3]]
    assert asked(kind="checked", limit=1, before=recorded[1]) == [recorded[3]]
    newest = looped.http.get("/events?limit=1").json()[0]
    assert (newest["kind"], newest["message"], newest["version"]) == ("monitored", "Event 3.", 1)
    assert newest["figures"] == {"accuracy": 0.5, "number": 3}


def test_a_hundred_events_are_told_unless_more_are_asked_for(looped: Gateway) -> None:
    with looped.database.transaction() as session:
        for number in range(101):
            events.record(session, EventKind.CHECKED, f"Event {number}.")
    assert len(looped.http.get("/events").json()) == 100
    assert len(looped.http.get("/events?limit=101").json()) == 101


@pytest.mark.parametrize("name", ["limit", "before"])
@pytest.mark.parametrize(
    "value", ["0", "-1", "1.5", "abc", "", "٣", "1e2", "9" * 19, "0" * 19 + "19" + "9" * 20, "1" * 5_000]
)
def test_wrong_number_in_a_query(looped: Gateway, name: str, value: str) -> None:
    most = {"limit": "1,000", "before": "4,611,686,018,427,387,904"}[name]
    problem = assert_problem(looped.http.get("/events", params={name: value}), 422, "invalid-fields")
    message = f"is {value[:50]!r}; a whole number from 1 to {most} is needed"
    assert problem["errors"] == [{"field": name, "message": message}]


@pytest.mark.parametrize("kind", ["nothing", "", "CHECKED"])
def test_unknown_kind_of_event(looped: Gateway, kind: str) -> None:
    problem = assert_problem(looped.http.get("/events", params={"kind": kind}), 422, "invalid-fields")
    assert problem["errors"] == [{"field": "kind", "message": f"is not a kind of event; use one of {KINDS}"}]


def test_one_more_event_than_the_limit_is_refused(looped: Gateway) -> None:
    assert looped.http.get("/events?limit=1000").status_code == 200
    assert_problem(looped.http.get("/events?limit=1001"), 422, "invalid-fields")


def test_a_retraining_is_asked_for_once_until_it_is_cancelled(looped: Gateway) -> None:
    first = looped.http.post("/retrain", headers=KEY)
    job = told(first, 202, Job)
    assert (job["kind"], job["state"], job["reason"]) == ("retrain", "queued", "by request")
    assert first.headers["location"] == f"/jobs/{job['id']}"
    assert posted(looped, "/retrain", 202, Job) == job
    assert told(looped.http.get(first.headers["location"]), 200, Job) == job

    cancelled = posted(looped, f"/jobs/{job['id']}/cancel", 200, Job)
    assert cancelled["state"] == "cancelled"
    assert cancelled["ended_at"] is not None
    assert posted(looped, f"/jobs/{job['id']}/cancel", 200, Job) == cancelled
    assert posted(looped, "/retrain", 202, Job)["id"] != job["id"]


def test_a_running_job_is_asked_to_end(looped: Gateway) -> None:
    job = jobs.enqueue(looped.database, jobs.RETRAIN, "a test")
    jobs.begin(looped.database, job.id)
    assert posted(looped, f"/jobs/{job.id}/cancel", 200, Job)["state"] == "running"
    assert jobs.is_cancel_requested(looped.database, job.id)


def test_a_check_that_nobody_does_is_answered_with_the_job(looped: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.routes.admin, "CHECK_WAIT_S", 0.3)
    job = posted(looped, "/check", 202, Job)
    assert (job["kind"], job["state"], job["ended_at"]) == ("check", "queued", None)
    assert posted(looped, "/check", 202, Job)["id"] == job["id"]


@pytest.mark.parametrize("outcome", [jobs.Outcome(jobs.SUCCEEDED, {"accuracy": 0.9}), None], ids=["done", "cancelled"])
def test_a_check_that_ends_meanwhile_is_answered_with_its_end(looped: Gateway, outcome: jobs.Outcome | None) -> None:
    def end() -> None:
        until(lambda: jobs.waiting(looped.database, jobs.CHECK) is not None)
        waiting = jobs.waiting(looped.database, jobs.CHECK)
        assert waiting is not None
        if outcome is None:
            jobs.request_cancel(looped.database, waiting.id)
        else:
            jobs.begin(looped.database, waiting.id)
            with looped.database.transaction() as session:
                jobs.end(session, waiting.id, outcome)

    ending = threading.Thread(target=end)
    ending.start()
    job = posted(looped, "/check", 200, Job)
    ending.join()
    assert job["state"] == (outcome.state if outcome else "cancelled")
    assert job["result"] == (outcome.result if outcome else {})
    assert told(looped.http.get(f"/jobs/{job['id']}"), 200, Job) == job


def test_without_the_database_every_route_says_so(
    triton: FakeTriton, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file where a directory should be")
    with (
        served(make_app(triton, tmp_path)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http,
    ):
        for response in [http.post(path, headers=KEY) for path in CHANGING] + [http.get(path) for path in READING]:
            problem = assert_problem(response, 503, "storage-unavailable")
            assert response.headers["retry-after"] == "5"
            assert str(tmp_path) not in problem["detail"]
        assert http.post("/predict/live", json={"text": "a"}).status_code == 200
    assert f"The database sqlite:///{tmp_path / 'state' / 'sentiment.db'} cannot be used" in caplog.text


def test_a_damaged_repository_is_told_as_such(looped: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    (looped.repository.version_directory(1) / DESCRIPTION).unlink()
    assert_problem(looped.http.get("/models"), 503, "storage-unavailable")
    assert f"{DESCRIPTION} missing" in caplog.text


@pytest.fixture(scope="module")
def document(fake_triton: FakeTriton, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with served(make_app(fake_triton, tmp_path_factory.mktemp("document"))) as port:
        document: dict[str, Any] = httpx.get(f"http://127.0.0.1:{port}/openapi.json").json()
    return document


@pytest.mark.parametrize(("method", "path"), ANSWERS)
def test_each_route_is_documented(document: dict[str, Any], method: str, path: str) -> None:
    model, statuses, problems = ANSWERS[method, path]
    operation = document["paths"][path][method]
    needed = "admin" if method == "post" else "texts" if path.endswith("/differences") else "read"
    assert operation["security"] == ([{}] if needed == "read" else []) + [{"ApiKey": [needed]}, {"Bearer": [needed]}]
    responses = operation["responses"]
    assert set(responses) == statuses | problems | {"401", "403", "421", "429", "503", "default"}
    for status in statuses:
        schema = responses[status]["content"]["application/json"]["schema"]
        assert ("items" in schema) == (path in {"/models", "/events", "/models/{version}/differences"})
        assert schema.get("items", schema) == {"$ref": f"#/components/schemas/{model}"}
    for name in {"version", "job"} & set(path.replace("{", "/").replace("}", "/").split("/")):
        (parameter,) = [item for item in operation["parameters"] if item["in"] == "path"]
        assert (parameter["in"], parameter["name"], parameter["required"]) == ("path", name, True)
        assert parameter["schema"] == {"type": "integer", "minimum": 1, "maximum": 2**63 - 1}


def test_the_key_and_the_parameters_of_events_are_documented(document: dict[str, Any]) -> None:
    assert document["components"]["securitySchemes"] == {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "Bearer": {"type": "http", "scheme": "bearer"},
    }
    parameters = {item["name"]: item for item in document["paths"]["/events"]["get"]["parameters"]}
    assert {(item["in"], item["required"]) for item in parameters.values()} == {("query", False)}
    assert {name: item["schema"] for name, item in parameters.items()} == {
        "limit": {"type": "integer", "minimum": 1, "maximum": 1_000, "default": 100},
        "before": {"type": "integer", "minimum": 1, "maximum": 2**62},
        "kind": {"type": "string", "enum": [kind.value for kind in EventKind]},
    }
