"""The view Versions, and what changes something: promoting, going back, jobs; each with the admin's scope alone."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import select

import gateway.auth.key_cache
from common.errors import PipelineError
from common.settings import Settings
from gateway.console.forms import MEDIA_TYPE as FORM
from gateway.console.page import ACTION_HEADER
from gateway.console.pages.versions import beside, mlflow_pages
from lifecycle.deployment import promotion
from lifecycle.deployment.version_report import LEARNT_FROM
from storage import jobs
from storage.api_keys import Scope, add_key
from storage.database import Database
from storage.tables import Deployment, Job, Version
from storage.versions import GateVerdict, add_verdicts, known_versions
from tests.gateway.conftest import ADMIN_KEY
from tests.gateway.console.conftest import INJECTED, PART, Page, begin_anew, sign_in
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.routes.test_feedback import Gateway, gateway_with_models

VERSIONS = "/console/versions"
CONFIRM = "/console/confirm"
CHANGES = ["promote", "roll-back", "shadow", "canary", "stop", "retrain", "check", "cancel"]


@pytest.fixture(scope="module")
def without_triton(bert_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """While no Triton runs, what is deployed is what it will load."""
    down = FakeTriton()
    down.port = 1
    with gateway_with_models(down, tmp_path_factory.mktemp("versions"), bert_bundle) as running:
        yield running


@pytest.fixture
def console(without_triton: Gateway) -> Gateway:
    """Signed in."""
    begin_anew(without_triton)
    root = without_triton.repository.root
    promotion.reconcile(Settings(state_dir=root.parent / "state", model_repository=root), without_triton.database)
    sign_in(without_triton.http)
    return without_triton


def change(console: Gateway, name: str, **fields: object) -> httpx.Response:
    given = {key: str(value) for key, value in fields.items()}
    return console.http.post(f"/console/{name}", data=given, headers={"Content-Type": FORM})


def newest(database: Database, table: Any) -> Any:
    with database.reading() as session:
        return session.scalars(select(table).order_by(table.id.desc())).first()


def test_each_version_is_told_with_what_is_known_of_it(console: Gateway) -> None:
    verdicts = [
        GateVerdict("thresholds", True, "They are met.", {}),
        GateVerdict("comparison", False, f"Worse. {INJECTED}", {"texts": 300}),
    ]
    add_verdicts(console.database, 2, verdicts)
    page = Page(console.http.get(VERSIONS))
    assert re.search(r"Version 1\s+● deployed", page.text)
    assert page.text.index("Promote version 2") < page.text.index("● deployed", page.text.index("Compare")), (
        "newest first"
    )
    assert "1 of 2 passed" in page.text
    assert "✕ failed comparison Worse. <script>" in page.text
    assert "Never deployed." in page.text
    assert page.runs_nothing_but_files()
    assert [
        link["href"] for link in page.all("a") if CONFIRM in str(link["href"]) and "version" in str(link["href"])
    ] == [f"{CONFIRM}?change={change}&version=2" for change in ("promote", "shadow", "canary")]
    part = Page(console.http.get(VERSIONS, headers=PART))
    assert not part.all("html")
    assert "Version 2" in part.text


def test_a_version_is_shown_beside_its_baseline(console: Gateway) -> None:
    assert "Macro F1 of the baseline" not in Page(console.http.get(VERSIONS)).text, "an older version has none"
    with console.database.transaction() as session:
        known = session.get_one(Version, 1)
        figures = {"accuracy": 0.74, "macro_f1": 0.7371, "texts": 300}
        known.bundle = {**known.bundle, "metrics": {"accuracy": 0.7, "macro_f1": 0.677}, "baseline": figures}
    assert "Macro F1 of the baseline 0.7371" in Page(console.http.get(VERSIONS)).text
    assert "baseline macro F1" in Page(console.http.get("/console/versions/compare?left=1&right=2")).text


def test_a_version_is_shown_with_its_feedback(console: Gateway) -> None:
    learnt = {"version": 2, LEARNT_FROM: {"key:a": 400, "console:b": 9}}
    job = jobs.enqueue(console.database, jobs.RETRAIN, "by the test")
    with console.database.transaction() as session:
        jobs.end(session, job.id, jobs.Outcome(jobs.SUCCEEDED, learnt))
    figures = {"feedback": {"accuracy": 0.8123, "macro_f1": 0.8, "texts": 173}}
    add_verdicts(console.database, 2, [GateVerdict("thresholds", True, "They are met.", figures)])
    text = Page(console.http.get(VERSIONS)).text
    assert "Accuracy on feedback 0.8123 (173 texts)" in text
    assert "Feedback in the training data 409 texts" in text
    text = Page(console.http.get("/console/versions/compare?left=1&right=2")).text
    assert "Feedback in the training data 0 texts 409 texts" in text
    assert "accuracy on feedback – 0.8123" in text
    assert "macro F1 on feedback – 0.8000" in text
    assert "texts of feedback – 173" in text


@pytest.mark.parametrize(("left", "right", "told"), [(2, 1, "−0.0233"), (1, 2, "+0.0233")])
def test_a_difference_is_of_the_first_version_from_the_second(
    console: Gateway, left: int, right: int, told: str
) -> None:
    accuracy = {1: 0.84, 2: 0.8167}
    with console.database.transaction() as session:
        for known in known_versions(session):
            known.bundle = {**known.bundle, "metrics": {"accuracy": accuracy[known.version], "texts": 300}}
    page = Page(console.http.get(f"/console/versions/compare?left={left}&right={right}"))
    assert f"Difference: {left} − {right}" in page.text
    assert f"accuracy {accuracy[left]:.4f} {accuracy[right]:.4f} {told}" in page.text
    assert "texts 300 300 0 " in page.text, "a difference of zero has no sign"


def test_the_rows_of_a_version_are_told(console: Gateway) -> None:
    Page(console.http.get(VERSIONS))
    counts = {"rows": 5120, "kept": 4960, "repetitions": 12, "rejected": {"empty text": 120, "missing label": 28}}
    with console.database.transaction() as session:
        version = next(known for known in known_versions(session) if known.version == 2)
        version.bundle = {**version.bundle, "data": {"train": counts}}
    text = Page(console.http.get(VERSIONS)).text
    assert text.count("Training rows") == 1, "version 1 is of a release that did not count"
    assert "4,960 of 5,120 kept, 12 repeated, empty text 120, missing label 28" in text
    assert [model["data"] for model in console.http.get("/models").json()] == [{"train": counts}, {}]
    held_out = {"rows": 1300, "kept": 1300, "repetitions": 0, "rejected": {}}
    with console.database.transaction() as session:
        version = session.get_one(Version, 2)
        version.bundle = {**version.bundle, "data": {"train": counts, "held_out": held_out}}
    text = Page(console.http.get(VERSIONS)).text
    assert "Validation texts 1,300 held out of the training rows" in text
    assert "of 1,300 kept" not in text


def test_who_may_only_read_is_offered_no_change(console: Gateway) -> None:
    console.http.cookies.clear()
    page = Page(console.http.get(VERSIONS))
    assert not [link for link in page.all("a") if CONFIRM in str(link["href"])]
    assert "Sign in with the admin key" in page.text
    assert console.http.get(f"{CONFIRM}?change=roll-back").status_code == 401
    for name in CHANGES:
        assert console.http.post(f"/console/{name}", data={"version": "2", "from": "1", "job": "1"}).status_code == 401
    assert console.repository.deployed() == 1
    assert newest(console.database, Job) is None


def test_a_version_is_promoted_and_gone_back_from_after_it_was_said_what_will_happen(console: Gateway) -> None:
    assert "There is no previous version to roll back to." in Page(console.http.get(VERSIONS)).text
    asked = Page(console.http.get(f"{CONFIRM}?change=promote&version=2"))
    assert "Version 2 is loaded beside version 1, which keeps serving until then. No request fails" in asked.text
    assert "The gates were never run on it." in asked.text
    assert "For 30 minutes, it is monitored. It is rolled back if it fails or is slow on the pipeline’s" in asked.text
    assert console.repository.deployed() == 1, "nothing is done yet"

    done = change(console, "promote", version=2)
    assert (done.status_code, done.headers["location"]) == (303, f"{VERSIONS}?done=promoted")
    assert console.repository.deployed() == 2
    assert newest(console.database, Deployment).reason == "by the console (admin)"
    page = Page(console.http.get(done.headers["location"]))
    assert "the version is deployed" in page.text
    assert "Roll back to version 1" in page.text

    back = Page(console.http.get(f"{CONFIRM}?change=roll-back"))
    assert "Roll back to version 1?" in back.text
    assert "Version 2 stays on disk" in back.text
    assert [field["value"] for field in back.all("input") if field.get("name") == "from"] == ["2"]
    assert change(console, "roll-back", **{"from": 2}).status_code == 303
    assert console.repository.deployed() == 1
    # Somebody else's page, from before.
    again = change(console, "roll-back", **{"from": 2})
    assert again.status_code == 409
    assert "Version 2 is no longer deployed; version 1 is." in Page(again).text
    nothing = console.http.get(f"{CONFIRM}?change=roll-back")
    assert nothing.status_code == 409
    assert "Version 2 was deployed before version 1 and was rolled back" in Page(nothing).text


def test_a_script_is_told_where_to_go(console: Gateway) -> None:
    answer = console.http.post("/console/retrain", headers={**PART, "Content-Type": FORM})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (200, f"{VERSIONS}?done=retrain")


def test_jobs_are_asked_for_once_and_ended(console: Gateway) -> None:
    for name in ("retrain", "check"):
        assert "What will happen" in Page(console.http.get(f"{CONFIRM}?change={name}")).text
        assert change(console, name).headers["location"] == f"{VERSIONS}?done={name}"
        job = newest(console.database, Job)
        assert (job.kind, job.state, job.reason) == (name, jobs.QUEUED, "by the console (admin)")
        change(console, name)
        assert newest(console.database, Job).id == job.id
        assert change(console, "cancel", job=job.id).headers["location"] == f"{VERSIONS}?done=cancel"
        assert newest(console.database, Job).state == jobs.CANCELLED


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("given", [{}, {"action_token": "x" * 43}, {"key": "wrong"}], ids=str)
def test_no_change_with_the_cookie_alone(console: Gateway, name: str, given: dict[str, str]) -> None:
    """Whoever has the cookie can see every page, and send whatever a browser sends: it is no browser."""
    token = console.http.headers.pop(ACTION_HEADER)
    for page in (VERSIONS, "/", "/console/label", "/console/sign-in", f"{CONFIRM}?change=check", "/console/progress"):
        with console.http.stream("GET", page) as shown:
            assert token not in next(shown.iter_text())
    response = console.http.post(f"/console/{name}", data={"version": "2", "from": "1", "job": "1", **given})
    assert response.status_code == 403
    assert token not in response.text
    assert console.repository.deployed() == 1
    assert newest(console.database, Job) is None


def test_a_page_that_does_not_know_the_token_asks_for_the_key_and_does_what_was_asked(console: Gateway) -> None:
    del console.http.headers[ACTION_HEADER]
    asked = Page(change(console, "promote", version=2))
    assert "The API key is needed again" in asked.text
    (form,) = [form for form in asked.all("form") if form["action"] == "/console/promote"]
    assert "hx-post" not in form, "it works without a script"
    assert [field.get("value") for field in asked.all("input") if field.get("name") == "version"] == ["2"]
    assert [form for form in Page(change(console, "retrain")).all("form") if form["action"] == "/console/retrain"]
    other = add_key(console.database, "other-admin", [Scope.ADMIN])
    time.sleep(gateway.auth.key_cache.REFRESH_S + 0.5)
    assert console.http.get("/models", headers={"X-API-Key": other}).is_success
    assert change(console, "promote", version=2, key=other).status_code == 403, "the key of another session"
    assert change(console, "promote", version=2, key=ADMIN_KEY).status_code == 303
    assert console.repository.deployed() == 2


@pytest.mark.parametrize(
    ("name", "fields", "status"),
    [
        ("promote", {"version": "9"}, 404),
        ("promote", {"version": "1"}, 409),
        ("promote", {"version": "../1"}, 422),
        ("promote", {"version": "٣"}, 422),
        ("promote", {}, 422),
        ("roll-back", {"from": "1"}, 409),
        ("roll-back", {}, 422),
        ("shadow", {"version": "9"}, 404),
        ("canary", {"version": "1"}, 409),
        ("canary", {"version": INJECTED}, 422),
        ("stop", {"version": "2"}, 409),
        ("cancel", {"job": "77"}, 404),
        ("cancel", {"job": INJECTED}, 422),
    ],
)
def test_what_cannot_be_done_is_told(console: Gateway, name: str, fields: dict[str, str], status: int) -> None:
    response = change(console, name, **fields)
    assert response.status_code == status
    page = Page(response)
    assert [card for card in page.all("div") if card.get("role") == "alert" and card.get("class") == "card problem"]
    assert page.runs_nothing_but_files()
    assert console.repository.deployed() == 1


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("change=roll-back", 409),
        ("change=promote&version=9", 404),
        ("change=promote", 404),
        ("change=canary&version=9", 404),
        ("change=<script>", 422),
        ("", 422),
    ],
)
def test_what_cannot_be_done_is_not_asked(console: Gateway, query: str, status: int) -> None:
    response = console.http.get(f"{CONFIRM}?{query}")
    assert response.status_code == status
    assert Page(response).runs_nothing_but_files()


def test_a_change_that_fails_leaves_all_as_it_was(console: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PipelineError("the-secret")

    monkeypatch.setattr(promotion, "promote", fail)
    response = change(console, "promote", version=2)
    assert response.status_code == 503
    assert "the-secret" not in response.text


def test_two_versions_stand_beside_each_other(console: Gateway) -> None:
    add_verdicts(console.database, 2, [GateVerdict("slices", True, "Not worse.", {})])
    page = Page(console.http.get(f"{VERSIONS}/compare?left=1&right=2"))
    assert "Version 1 compared to version 2" in page.text
    assert "slices Version 1: not run Version 2: ✓ passed Not worse." in page.text
    for query in ("left=1", "left=1&right=7", f"left={INJECTED}&right=1"):
        response = console.http.get(f"{VERSIONS}/compare?{query}")
        assert response.status_code == 422
        assert Page(response).runs_nothing_but_files()


def test_what_only_one_side_has_is_told_too() -> None:
    assert beside({"a": 1, "b": 2}, {"b": 3, "c": 4}) == [("a", 1, None), ("b", 2, 3), ("c", None, 4)]


def test_mlflows_pages_are_linked_where_they_can_be(tmp_path: Path) -> None:
    def of(uri: str | None) -> str:
        return mlflow_pages(Settings(state_dir=tmp_path, mlflow_tracking_uri=None if uri is None else SecretStr(uri)))

    assert of("http://mlflow.example:5000/") == "http://mlflow.example:5000/#/models/sentiment/versions/"
    assert of("http://localhost:5000").startswith("http://localhost:5000/#/")
    assert of("http://mlflow:5000") == ""  # among containers; no browser knows the name
    assert of("https://user:password@mlflow") == ""
    assert of(None) == ""


def test_two_versions_beside_each_other_show_the_texts_on_which_they_differ(console: Gateway) -> None:
    differing = {
        "champion": 1,
        "validation texts": 300,
        "differ": 41,
        "examples": [{"text": INJECTED, "right": "Positive", "champion": "Negative", "candidate": "Positive"}],
    }
    add_verdicts(console.database, 2, [GateVerdict("trial", True, "It answered.", differing)])
    page = Page(console.http.get(f"{VERSIONS}/compare", params={"left": 1, "right": 2}))
    assert "41 validation texts of 300 got different labels" in page.text
    assert re.search(r"Positive is right ✕ Negative says version 1 ✓ Positive says version 2", page.text)
    assert page.runs_nothing_but_files()
    turned = Page(console.http.get(f"{VERSIONS}/compare", params={"left": 2, "right": 1}))
    assert re.search(r"Positive is right ✓ Positive says version 2 ✕ Negative says version 1", turned.text)


def test_of_versions_that_were_not_tried_beside_each_other_it_says_so(console: Gateway) -> None:
    page = Page(console.http.get(f"{VERSIONS}/compare", params={"left": 1, "right": 2}))
    assert "The gates have not compared these two versions" in page.text
