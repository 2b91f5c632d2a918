import asyncio
import json
import logging
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http.error_handlers import answer_with_problems
from gateway.http.request_body import MAX_BODY_BYTES
from gateway.http.schemas import BatchRequest, LiveRequest
from gateway.http.validation import MAX_TEXTS
from serving.model_repo.texts import MAX_CHARACTERS
from tests.gateway.fake_triton import FakeTriton

LIVE, BATCH = "/predict/live", "/predict/batch"
BLANK = "is empty or only blanks; a text with a visible character is needed"

WRONG_FIELDS: list[tuple[str, str, list[tuple[str, str]]]] = [
    (LIVE, "{}", [("text", "is missing; a string is needed")]),
    (LIVE, '{"text": 5}', [("text", "is an integer; a string is needed")]),
    (LIVE, '{"text": 0.5}', [("text", "is a number; a string is needed")]),
    (LIVE, '{"text": 1e999}', [("text", "is a number; a string is needed")]),
    (LIVE, '{"text": true}', [("text", "is a boolean; a string is needed")]),
    (LIVE, '{"text": null}', [("text", "is null; a string is needed")]),
    (LIVE, '{"text": ["a"]}', [("text", "is a list; a string is needed")]),
    (LIVE, '{"text": {"text": "a"}}', [("text", "is an object; a string is needed")]),
    (LIVE, '{"text": ""}', [("text", BLANK)]),
    (LIVE, r'{"text": " \t\r\n"}', [("text", BLANK)]),
    (LIVE, r'{"text": "\u200b\ufeff\u2060\u00a0\u0000\u3164"}', [("text", BLANK)]),
    (
        LIVE,
        r'{"text": "ab\ud800"}',
        [("text", r"has half of a surrogate pair, \ud800, at position 2; whole characters are needed")],
    ),
    (
        LIVE,
        json.dumps({"text": "a" * (MAX_CHARACTERS + 1)}),
        [("text", "is 100,001 characters long; at most 100,000 are allowed")],
    ),
    (
        LIVE,
        '{"texts": "a"}',
        [("texts", "is not a field; did you mean text?"), ("text", "is missing; a string is needed")],
    ),
    (LIVE, '{"text": "a", "language": "en"}', [("language", "is not a field; only text is allowed")]),
    (LIVE, r'{"text": "a", "\udc00": 1}', [(r"\udc00", "is not a field; only text is allowed")]),
    (LIVE, '{"text": "a", "text": "b"}', [("text", "is given more than once; give it once")]),
    (LIVE, r'{"text": "a", "te\u0078t": "b"}', [("text", "is given more than once; give it once")]),
    (LIVE, '["a"]', [("body", "is a list; an object is needed")]),
    (LIVE, '"a"', [("body", "is a string; an object is needed")]),
    (LIVE, "null", [("body", "is null; an object is needed")]),
    (
        BATCH,
        '{"text": ["a"]}',
        [("text", "is not a field; did you mean texts?"), ("texts", "is missing; a list of strings is needed")],
    ),
    (BATCH, '{"texts": "a"}', [("texts", "is a string; a list of strings is needed")]),
    (BATCH, '{"texts": []}', [("texts", "is empty; a list of at least one string is needed")]),
    (
        BATCH,
        r'{"texts": ["a", 1, null, "ok", " ", "\udfff"], "mode": 1}',
        [
            ("mode", "is not a field; only texts is allowed"),
            ("texts[1]", "is an integer; a string is needed"),
            ("texts[2]", "is null; a string is needed"),
            ("texts[4]", BLANK),
            ("texts[5]", r"has half of a surrogate pair, \udfff, at position 0; whole characters are needed"),
        ],
    ),
]

MALFORMED: list[tuple[bytes, str]] = [
    (b"", "The body is not JSON: .*empty.*"),
    (b"{'text': 'a'}", r"The body is not JSON: .*\(char 1\)\."),
    (b'{"text": "a"', r"The body is not JSON: .*\(char 12\)\."),
    (b'{"text": "a"} x', r"The body is not JSON: .*\(char 14\)\."),
    (b'{"text": NaN}', r"The body is not JSON: NaN is not a JSON value\."),
    (b'{"text": -Infinity}', r"The body is not JSON: -Infinity is not a JSON value\."),
    (b'\xef\xbb\xbf{"text": "a"}', "The body is not JSON: .*BOM.*"),
    (b'{"text": "a\xff"}', r"The body is not UTF-8: invalid start byte at byte 11\."),
    ('{"text": "é"}'.encode("latin-1"), r"The body is not UTF-8: invalid continuation byte at byte 10\."),
    (b"[" * 60_000, r"The body is nested too deeply\."),
    (b'{"text": ' + b"1" * 5_000 + b"}", r"A number in the body has too many digits\."),
]
"""Bodies and patterns of what is said; where a position is meant, the parser's own words are not."""


def post(http: httpx.Client, path: str, body: Any, **headers: str) -> httpx.Response:
    return http.post(path, content=body, headers={"content-type": "application/json", **headers})


def assert_problem(response: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    problem: dict[str, Any] = response.json()
    assert response.status_code == problem["status"] == status
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["type"] == (kind if kind == "about:blank" else f"urn:sentiment:problem:{kind}")
    return problem


@pytest.mark.parametrize(("path", "body", "errors"), WRONG_FIELDS, ids=lambda value: str(value)[:40])
def test_wrong_fields_are_all_named(
    http: httpx.Client, triton: FakeTriton, path: str, body: str, errors: list[tuple[str, str]]
) -> None:
    problem = assert_problem(post(http, path, body), 422, "invalid-fields")
    assert [(error["field"], error["message"]) for error in problem["errors"]] == errors
    assert problem["detail"].startswith(" ".join(errors[0]))
    assert not triton.calls


@pytest.mark.parametrize(("body", "detail"), MALFORMED, ids=lambda value: str(value)[:40])
def test_malformed_body(http: httpx.Client, body: bytes, detail: str) -> None:
    assert re.fullmatch(detail, assert_problem(post(http, LIVE, body), 400, "malformed-body")["detail"])


def test_list_over_the_limit(http: httpx.Client) -> None:
    problem = assert_problem(post(http, BATCH, json.dumps({"texts": ["a"] * (MAX_TEXTS + 1)})), 413, "too-large")
    assert problem["errors"] == [{"field": "texts", "message": "has 1,001 texts; at most 1,000 are allowed"}]


def test_body_declared_over_the_limit_is_refused_unread(port: int) -> None:
    head = (
        f"POST {LIVE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {MAX_BODY_BYTES + 1}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_body_over_the_limit_in_chunks(http: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"text": "'
        for _ in range(MAX_BODY_BYTES // 65_536 + 1):
            yield b"a" * 65_536
        yield b'"}'

    problem = assert_problem(post(http, LIVE, chunks()), 413, "too-large")
    assert problem["detail"] == "The body is too long; at most 4,194,304 bytes are allowed."


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"text": [' + b"{}," * 30_000, b'{"a": ""' + b',"a":""' * 20_000])
def test_body_of_many_short_values_is_refused_before_it_is_parsed(http: httpx.Client, body: bytes) -> None:
    problem = assert_problem(post(http, LIVE, body), 413, "too-large")
    assert problem["detail"] == "The body holds too many values; send them in several requests."


@pytest.mark.parametrize("text", ["[" * MAX_CHARACTERS, '"' * 50_000, "\\" * 50_000, '\\"' * 30_000])
def test_text_that_looks_like_many_values_is_none(http: httpx.Client, triton: FakeTriton, text: str) -> None:
    assert http.post(LIVE, json={"text": text}).status_code == 200
    assert triton.calls == [[text]]


def test_body_in_chunks(http: httpx.Client, triton: FakeTriton) -> None:
    body = '{"text": "é in halves"}'.encode()
    response = post(http, LIVE, (body[at : at + 1] for at in range(len(body))))
    assert response.status_code == 200
    assert triton.calls == [["é in halves"]]


def test_client_that_leaves_in_the_middle_of_its_body_harms_nobody(
    http: httpx.Client, port: int, triton: FakeTriton, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            f"POST {LIVE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            "Content-Length: 100\r\n\r\n{".encode()
        )
    assert post(http, LIVE, '{"text": "next"}').status_code == 200
    assert triton.calls == [["next"]]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("headers", "detail"),
    [
        ({"content-type": "text/plain"}, "Content-Type is text/plain; application/json is needed."),
        ({"content-type": ""}, "Content-Type is missing; application/json is needed."),
        ({"content-encoding": "gzip"}, "Content-Encoding is gzip; an uncompressed body is needed."),
    ],
)
def test_unsupported_media_type(http: httpx.Client, headers: dict[str, str], detail: str) -> None:
    response = post(http, LIVE, '{"text": "a"}', **headers)
    assert assert_problem(response, 415, "unsupported-media-type")["detail"] == detail


@pytest.mark.parametrize("path", ["/nothing", "/predict", f"{LIVE}/", "/predict/live/../../etc"])
def test_unknown_path(http: httpx.Client, path: str) -> None:
    assert_problem(http.post(path, json={"text": "a"}), 404, "about:blank")


def test_wrong_method(http: httpx.Client) -> None:
    response = http.get(LIVE)
    assert assert_problem(response, 405, "about:blank")["title"] == "Method Not Allowed"
    assert response.headers["allow"] == "POST"


def test_names_that_a_stranger_chose_do_not_swell_the_answer(http: httpx.Client) -> None:
    body = json.dumps({f"{number}" * 100: 1 for number in range(7_000)})
    response = post(http, LIVE, body)
    assert_problem(response, 422, "invalid-fields")
    assert len(response.content) < 5_000


def test_frameworks_own_validation_errors_are_problems_too() -> None:
    app = FastAPI()
    answer_with_problems(app)

    @app.get("/{number}")
    async def route(number: int) -> int:
        return number

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get("/one")

    problem = assert_problem(asyncio.run(ask()), 422, "invalid-fields")
    assert [error["field"] for error in problem["errors"]] == ["path.number"]


ANY_TEXT = st.text(st.characters(), max_size=20)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
ANY_BODY = ANY_JSON | st.fixed_dictionaries({}, optional={"text": ANY_JSON, "texts": st.lists(ANY_JSON), "x": ANY_JSON})
bounded = settings(max_examples=150)


@bounded
@given(path=st.sampled_from([LIVE, BATCH]), value=ANY_BODY, escaped=st.booleans())
def test_any_json_gets_an_answer_or_a_problem(http: httpx.Client, path: str, value: Any, escaped: bool) -> None:
    body = json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    response = post(http, path, body)
    assert response.status_code in {200, 400, 422}
    if response.status_code == 200:
        (LiveRequest if path == LIVE else BatchRequest).model_validate_json(body, strict=True)
    else:
        assert response.headers["content-type"] == "application/problem+json"


@bounded
@given(path=st.sampled_from([LIVE, BATCH]), body=st.binary(max_size=50))
def test_any_bytes_get_a_problem(http: httpx.Client, path: str, body: bytes) -> None:
    assert post(http, path, body).status_code in {400, 422}
