import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, text

from gateway.http.problems import ConflictError, MalformedBodyError, TooLargeError
from gateway.http.schemas import FeedbackAccepted, FeedbackRequest
from gateway.http.validation import MAX_TEXTS
from serving.model_repo.repository import ModelRepository
from serving.model_repo.texts import MAX_CHARACTERS
from storage.database import Database
from storage.feedback import is_held_out, text_hash
from storage.tables import Feedback
from tests.gateway.conftest import ADMIN_KEY, make_app, served
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.routes.test_wrong_requests import ANY_JSON, BLANK, assert_problem, bounded, post
from tests.lifecycle.conftest import Served, publish

FEEDBACK = "/feedback"
MISSING = "is missing; a string is needed"
NEUTRAL = "is 'Neutral'; it must be one of Negative, Positive"
ROW = {"text": "I love this product!", "label": "Positive"}

WRONG_FIELDS: list[tuple[str, list[tuple[str, str]]]] = [
    ("{}", [("text", MISSING), ("label", MISSING)]),
    ('{"text": "a"}', [("label", MISSING)]),
    (
        '{"text": 5, "label": null}',
        [("text", "is an integer; a string is needed"), ("label", "is null; a string is needed")],
    ),
    (r'{"text": " \u200b", "label": ""}', [("text", BLANK), ("label", BLANK)]),
    (r'{"text": "\u0000", "label": "Positive"}', [("text", BLANK)]),
    (
        r'{"text": "ab\u0000", "label": "\u0000a"}',
        [
            ("text", "has a NUL character at position 2; leave it out"),
            ("label", "has a NUL character at position 0; leave it out"),
        ],
    ),
    (
        r'{"text": "ab\ud800", "label": "\udfff"}',
        [
            ("text", r"has half of a surrogate pair, \ud800, at position 2; whole characters are needed"),
            ("label", r"has half of a surrogate pair, \udfff, at position 0; whole characters are needed"),
        ],
    ),
    (
        json.dumps({"text": "a" * (MAX_CHARACTERS + 1), "label": "Positive"}),
        [("text", "is 100,001 characters long; at most 100,000 are allowed")],
    ),
    (
        '{"texts": "a", "Label": "Positive"}',
        [
            ("texts", "is not a field; did you mean text?"),
            ("Label", "is not a field; did you mean label?"),
            ("text", MISSING),
            ("label", MISSING),
        ],
    ),
    (
        '{"text": "a", "label": "Positive", "weight": 2}',
        [("weight", "is not a field; only text and label are allowed")],
    ),
    (
        '{"text": "a", "label": "Positive", "label": "Negative"}',
        [("label", "is given more than once; give it once")],
    ),
    (
        '{"feedback": [], "feedback": []}',
        [
            ("feedback", "is given more than once; give it once"),
            ("feedback", "is empty; a list of objects is needed"),
        ],
    ),
    ('["a"]', [("body", "is a list; an object is needed")]),
    ("null", [("body", "is null; an object is needed")]),
    ('{"feedback": []}', [("feedback", "is empty; a list of objects is needed")]),
    ('{"feedback": null}', [("feedback", "is null; a list of objects is needed")]),
    ('{"feedback": {"text": "a"}}', [("feedback", "is an object; a list of objects is needed")]),
    (
        '{"feedback": [{"text": "a", "label": "Positive"}], "text": "a"}',
        [("text", "is not a field; only feedback is allowed")],
    ),
    (
        '{"feedback": ["a", {"text": "a", "label": "Positive"}, {"txt": "a", "label": false}, {"text": " "}]}',
        [
            ("feedback[0]", "is a string; an object is needed"),
            ("feedback[2].txt", "is not a field; did you mean text?"),
            ("feedback[2].text", MISSING),
            ("feedback[2].label", "is a boolean; a string is needed"),
            ("feedback[3].text", BLANK),
            ("feedback[3].label", MISSING),
        ],
    ),
    ('{"text": "a", "label": "Neutral"}', [("label", NEUTRAL)]),
    (
        json.dumps({"text": "a", "label": "N" * 100}),
        [("label", f"is '{'N' * 50}'; it must be one of Negative, Positive")],
    ),
    ('{"feedback": [{"text": "a", "label": "Neutral"}]}', [("feedback[0].label", NEUTRAL)]),
    (
        json.dumps({"feedback": [ROW, {"text": "a", "label": "Neutral"}, ROW, {"text": "b", "label": "Neutral"}]}),
        [("feedback[1].label", NEUTRAL), ("feedback[3].label", NEUTRAL)],
    ),
]


@dataclass(frozen=True)
class Gateway:
    """A gateway over a database, and a repository with two versions of the small model of which the first serves."""

    http: httpx.Client
    database: Database
    repository: ModelRepository

    def kept(self) -> list[Feedback]:
        with self.database.reading() as session:
            return list(session.scalars(select(Feedback).order_by(Feedback.id)))


@contextmanager
def gateway_with_models(triton: FakeTriton, directory: Path, bundle: Path, **settings: Any) -> Iterator[Gateway]:
    models = Served(directory, 0, {})
    for version in (1, 2):
        publish(models, bundle, version)
    models.repository.deploy(1)
    app = make_app(triton, directory, **settings)
    with served(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        database = Database(f"sqlite:///{directory / 'state' / 'sentiment.db'}")
        try:
            yield Gateway(http, database, models.repository)
        finally:
            database.close()
            app.context.storage.close()


@pytest.fixture(scope="module")
def gateway(fake_triton: FakeTriton, bert_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_with_models(fake_triton, tmp_path_factory.mktemp("feedback"), bert_bundle) as gateway:
        yield gateway


@pytest.mark.parametrize(("rows", "listed"), [(1, False), (1, True), (MAX_TEXTS, True)])
def test_feedback_is_kept_and_each_text_has_its_side(gateway: Gateway, rows: int, listed: bool) -> None:
    labels = ("Negative", "Positive")
    sent = [{"text": f" Naïve café {number} 🙂\n", "label": labels[number % 2]} for number in range(rows)]
    before = len(gateway.kept())
    response = gateway.http.post(FEEDBACK, json={"feedback": sent} if listed else sent[0])
    assert response.status_code == 201
    assert response.json() == {"accepted": rows}
    kept = gateway.kept()[before:]
    assert [{"text": row.text, "label": row.label} for row in kept] == sent
    assert [row.held_out for row in kept] == [is_held_out(text_hash(row["text"])) for row in sent]
    assert {row.source for row in kept} == {"anonymous"}
    assert {row.held_out for row in kept} == {False, True} or rows == 1


@pytest.mark.parametrize("spelling", ["positive", " POSITIVE", "Positive"])
def test_a_label_may_be_spelt_otherwise_and_is_kept_as_the_model_spells_it(gateway: Gateway, spelling: str) -> None:
    """As in imported files."""
    assert post(gateway.http, FEEDBACK, json.dumps({**ROW, "label": spelling})).status_code == 201
    assert gateway.kept()[-1].label == "Positive"


@pytest.mark.parametrize(("body", "errors"), WRONG_FIELDS, ids=lambda value: str(value)[:40])
def test_wrong_fields_are_all_named_and_nothing_is_kept(
    gateway: Gateway, body: str, errors: list[tuple[str, str]]
) -> None:
    before = len(gateway.kept())
    problem = assert_problem(post(gateway.http, FEEDBACK, body), 422, "invalid-fields")
    assert [(error["field"], error["message"]) for error in problem["errors"]] == errors
    assert problem["detail"].startswith(" ".join(errors[0]))
    assert len(gateway.kept()) == before


@pytest.mark.parametrize(
    ("body", "headers", "status", "kind", "detail"),
    [
        ("{'text': 'a'}", {}, 400, "malformed-body", "The body is not JSON: "),
        (b'{"text": "a\xff"}', {}, 400, "malformed-body", "The body is not UTF-8: "),
        (
            json.dumps(ROW),
            {"content-type": "text/plain"},
            415,
            "unsupported-media-type",
            "Content-Type is text/plain; application/json is needed.",
        ),
        (
            json.dumps({"feedback": [ROW] * (MAX_TEXTS + 1)}),
            {},
            413,
            "too-large",
            "The list is too long; send it in several requests.",
        ),
    ],
    ids=["not JSON", "not UTF-8", "not sent as JSON", "1,001 rows"],
)
def test_a_body_that_is_no_feedback_is_refused(
    gateway: Gateway, body: str | bytes, headers: dict[str, str], status: int, kind: str, detail: str
) -> None:
    before = len(gateway.kept())
    problem = assert_problem(post(gateway.http, FEEDBACK, body, **headers), status, kind)
    assert problem["detail"].startswith(detail)
    too_many = [{"field": "feedback", "message": "has 1,001 rows; at most 1,000 are allowed"}]
    assert problem.get("errors", []) == (too_many if status == 413 else [])
    assert len(gateway.kept()) == before


def test_a_request_sent_again_under_its_key_is_kept_once(gateway: Gateway) -> None:
    before = len(gateway.kept())
    with ThreadPoolExecutor(8) as callers:
        answers = list(
            callers.map(
                lambda _: gateway.http.post(FEEDBACK, json={"feedback": [ROW, ROW]}, headers={"idempotency-key": "k1"}),
                range(8),
            )
        )
    assert {(answer.status_code, answer.text) for answer in answers} == {(201, '{"accepted":2}')}
    assert len(gateway.kept()) == before + 2
    for _ in range(2):
        assert gateway.http.post(FEEDBACK, json=ROW).status_code == 201
    assert len(gateway.kept()) == before + 4


@pytest.mark.parametrize(
    "other", [{**ROW, "label": "Negative"}, {**ROW, "text": "I love it"}, {"feedback": [ROW, ROW]}], ids=str
)
def test_a_key_with_other_feedback_is_a_conflict(gateway: Gateway, other: dict[str, Any]) -> None:
    headers = {"idempotency-key": f"of {other}"}
    assert gateway.http.post(FEEDBACK, json=ROW, headers=headers).status_code == 201
    before = len(gateway.kept())
    problem = assert_problem(gateway.http.post(FEEDBACK, json=other, headers=headers), 409, "conflict")
    assert problem["detail"].startswith(f"The Idempotency-Key {headers['idempotency-key'][:50]!r} was used for other")
    assert len(gateway.kept()) == before


def test_a_key_over_200_characters_is_refused(gateway: Gateway) -> None:
    assert gateway.http.post(FEEDBACK, json=ROW, headers={"idempotency-key": "k" * 200}).status_code == 201
    before = len(gateway.kept())
    response = gateway.http.post(FEEDBACK, json=ROW, headers={"idempotency-key": "k" * 201})
    assert assert_problem(response, 422, "invalid-fields")["errors"] == [
        {"field": "Idempotency-Key", "message": "is 201 characters long; at most 200 are allowed"}
    ]
    assert len(gateway.kept()) == before


def test_what_was_answered_with_503_can_be_sent_again_under_its_key(gateway: Gateway) -> None:
    def rename(old: str, new: str) -> None:
        with gateway.database.transaction() as session:
            session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    before = len(gateway.kept())
    headers = {"idempotency-key": "sent again"}
    rename("feedback", "elsewhere")
    try:
        response = gateway.http.post(FEEDBACK, json=ROW, headers=headers)
    finally:
        rename("elsewhere", "feedback")
    assert_problem(response, 503, "storage-unavailable")
    assert gateway.http.post(FEEDBACK, json=ROW, headers=headers).status_code == 201
    assert len(gateway.kept()) == before + 1


@pytest.mark.parametrize("missing", ["database", "model"])
def test_without_database_or_model_feedback_waits_and_predictions_go_on(
    triton: FakeTriton, bert_bundle: Path, tmp_path: Path, missing: str
) -> None:
    models = Served(tmp_path, 0, {})
    publish(models, bert_bundle, 1)
    if missing == "database":
        (tmp_path / "state").write_text("a file where a directory should be")
        models.repository.deploy(1)
    app = make_app(triton, tmp_path)
    with served(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
        response = http.post(FEEDBACK, json=ROW)
        assert_problem(response, 503, "storage-unavailable")
        assert response.headers["retry-after"] == "5"
        assert http.post("/predict/live", json={"text": "a"}).status_code == 200
    app.context.storage.close()


def test_the_feedback_route_is_documented_and_its_examples_are_taken(gateway: Gateway) -> None:
    document = gateway.http.get("/openapi.json").json()
    operation = document["paths"][FEEDBACK]["post"]
    assert set(operation["responses"]) == {
        "201",
        "400",
        "401",
        "403",
        "409",
        "413",
        "415",
        "421",
        "422",
        "429",
        "503",
        "default",
    }
    (parameter,) = operation["parameters"]
    assert (parameter["in"], parameter["name"], parameter["required"]) == ("header", "Idempotency-Key", False)
    assert parameter["schema"] == {"type": "string", "maxLength": 200}
    assert operation["security"] == [{}, {"ApiKey": ["feedback"]}, {"Bearer": ["feedback"]}]
    FeedbackAccepted.model_validate(operation["responses"]["201"]["content"]["application/json"]["example"])
    for kind in (MalformedBodyError, ConflictError, TooLargeError):
        schema = operation["responses"][str(kind.status)]["content"]["application/problem+json"]["schema"]
        assert schema["properties"]["type"]["const"] == kind.type
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    examples = document["components"]["schemas"][reference.rpartition("/")[2]]["examples"]
    assert len(examples) == 2
    for example in examples:
        response = gateway.http.post(FEEDBACK, json=example)
        assert response.status_code == 201
        FeedbackAccepted.model_validate_json(response.content, strict=True)


ANY_ROW = st.fixed_dictionaries(
    {"text": ANY_JSON | st.just("good")}, optional={"label": st.just("Positive") | ANY_JSON, "x": ANY_JSON}
)


@bounded
@given(value=ANY_JSON | ANY_ROW | st.fixed_dictionaries({"feedback": st.lists(ANY_ROW, max_size=3) | ANY_JSON}))
def test_any_json_is_kept_or_gets_a_problem(gateway: Gateway, value: Any) -> None:
    body = json.dumps(value).encode()
    response = post(gateway.http, FEEDBACK, body)
    assert response.status_code in {201, 400, 422}
    if response.status_code == 201:
        FeedbackRequest.model_validate_json(body, strict=True)
    else:
        assert response.headers["content-type"] == "application/problem+json"


def test_large_bodies_without_a_key_are_bounded_before_they_are_read(
    fake_triton: FakeTriton, bert_bundle: Path, tmp_path: Path
) -> None:
    rows = [{"text": f"{number} {'a' * 3_900}", "label": "Positive"} for number in range(700)]  # 2.7 MiB
    with gateway_with_models(fake_triton, tmp_path, bert_bundle) as gateway:
        first = gateway.http.post(FEEDBACK, json={"feedback": rows})
        assert first.status_code == 201
        again = gateway.http.post(FEEDBACK, json={"feedback": rows})
        problem = assert_problem(again, 429, "feedback-quota")
        assert problem["detail"].startswith("Without a key, at most 4,096 KiB in 10 seconds of feedback are read.")
        assert 1 <= int(again.headers["retry-after"]) <= 10
        assert gateway.http.post(FEEDBACK, json=ROW).status_code == 201  # there is room for a small one
        keyed = gateway.http.post(FEEDBACK, json={"feedback": rows}, headers={"X-API-Key": ADMIN_KEY})
        assert keyed.status_code == 201
        assert len(gateway.kept()) == 1_401
