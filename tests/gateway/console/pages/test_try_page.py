import socket
import time
from pathlib import Path

import grpc
import httpx
import pytest
from pydantic import SecretStr

import gateway.console.pages.try_page
from common.settings import Settings
from gateway.console.pages import leave_one_out
from gateway.inference.batch_splitting import MOST_WORK
from gateway.load_control.admission import UnderWay
from gateway.load_control.backlog import LONGEST_TEXT, work_of
from gateway.main import create_app
from serving.client.call_statistics import CallStatistics
from storage.lazy_database import Storage
from tests.gateway.conftest import ADMIN_KEY, served, until
from tests.gateway.console.conftest import INJECTED, OWN, PART, Page
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.routes.test_feedback import Gateway

TRY = "/console/try"
FEEDBACK = "/console/feedback"
FORM = "Content-Type: application/x-www-form-urlencoded\r\nSec-Fetch-Site: same-origin\r\n"


def tried(console: Gateway, **form: str) -> Page:
    response = console.http.post(TRY, data=form, headers=PART)
    assert response.status_code == 200, response.text
    return Page(response)


def test_the_first_page_asks_for_a_text(console: Gateway, triton: FakeTriton) -> None:
    response = console.http.get("/")
    page = Page(response)
    assert response.status_code == 200
    assert "Type a sentence" in page.text
    assert "Version 1 deployed" in page.text
    assert [area["name"] for area in page.all("textarea")] == ["text"]
    assert page.runs_nothing_but_files()
    assert not triton.calls


def test_a_text_gets_its_label_the_probability_of_each_and_the_words_that_moved_it(
    console: Gateway, triton: FakeTriton
) -> None:
    triton.phases = (0.001, 0.002, 0.003)
    page = tried(console, text="a terrible day")
    assert "Negative 98.8 %" in page.text
    assert "Positive 1.2 %" in page.text
    assert [bar["width"] for bar in page.all("rect") if bar["class"] == "fill"] == ["98.75%", "1.25%"]
    assert triton.calls == [["a terrible day", "terrible day", "a day", "a terrible "]], "one call"
    moved = [span for span in page.all("span") if (span.get("class") or "").startswith("word")]
    # Without "terrible" the fake calls it positive.
    assert [span["class"] for span in moved[:3]] == ["word", "word for c0 s3", "word"]
    assert "terrible +97.5 points" in page.text
    assert "2.00 ms in the queue, 1.00 ms tokenizing, 3.00 ms in the graph · version 1" in page.text


def test_small_effects_are_marked_and_said_to_be_small(console: Gateway, triton: FakeTriton) -> None:
    triton.scores = {"fine day": 0.98, "a day": 0.98755}
    page = tried(console, text="a fine day")
    words = [span["class"] for span in page.all("span") if (span.get("class") or "").startswith("word")]
    assert words[:3] == ["word for c1 s1", "word", "word"]
    assert "the probability changes by at most 0.8 percentage points" in page.text
    assert "a +0.8 points" in page.text
    assert "fine 0.0 points" in page.text, "a change that rounds to zero has no sign"


def test_where_no_word_has_an_effect_none_is_said_to_have_one(console: Gateway) -> None:
    page = tried(console, text="a fine day")
    assert "the probability changes by less than 0.1 percentage points" in page.text
    assert "underlined" not in page.text


def test_each_line_is_a_text_where_that_is_asked_for(console: Gateway, triton: FakeTriton) -> None:
    page = tried(console, text="good\r\n\r\nterrible\nfine", lines="on")
    assert "3 texts" in page.text
    assert triton.calls == [["good", "terrible", "fine"]]
    assert len(page.all("rect")) == 3 * 2 * 2
    triton.calls.clear()
    tried(console, text="good\r\n\r\nterrible")
    assert triton.calls[0][0] == "good\n\nterrible"


def test_a_long_text_is_explained_in_small_calls(console: Gateway, triton: FakeTriton) -> None:
    words = [f"w{number}" for number in range(200)]
    page = tried(console, text=" ".join(words))
    asked = [text for call in triton.calls for text in call]
    assert len(triton.calls) > 1
    assert all(sum(map(len, call)) <= MOST_WORK for call in triton.calls)
    for word in words:
        assert sum(word not in variant.split() for variant in asked[1:]) == 1
    assert "was cut" in page.text


def test_the_longest_text_costs_what_the_model_reads_of_it(console: Gateway, triton: FakeTriton) -> None:
    words = [f"word{number}" for number in range(10_000)]
    text = " ".join(words)
    page = tried(console, text=text)
    asked = [variant for call in triton.calls for variant in call]
    assert asked[0] == text
    assert sum(map(work_of, asked)) <= leave_one_out.MOST_WORK + work_of(text)
    assert max(map(len, asked[1:])) <= 2 * LONGEST_TEXT
    assert words[0] not in asked[1].split()
    assert words[-1] in page.text, "what the model does not read is shown too"


def test_a_client_that_leaves_ends_the_work_for_its_text(console: Gateway, triton: FakeTriton) -> None:
    triton.delay_s = 0.2
    body = f"text={'+'.join(f'word{number}' for number in range(9_000))}".encode()
    head = f"POST {TRY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{FORM}\r\n"
    with socket.create_connection(("127.0.0.1", console.http.base_url.port or 0)) as client:
        client.sendall(head.encode() + body)
        until(lambda: len(triton.calls) == 2)
    time.sleep(1)
    assert len(triton.calls) <= 4, "of 8 calls"


def test_many_lines_take_several_calls(console: Gateway, triton: FakeTriton) -> None:
    page = tried(console, text="\n".join(f"line {number}" for number in range(150)), lines="on")
    assert [len(call) for call in triton.calls] == [64, 64, 22]
    assert "line 149" in page.text


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ({"lines": "on"}, "text is empty or only blanks"),
        ({"text": " \u200b"}, "text is empty or only blanks"),
        ({"text": "\n \n", "lines": "on"}, "text is empty or only blanks"),
        ({"text": "fine\n\u200b", "lines": "on"}, "line 2 is empty or only blanks"),
        ({"text": "x\n" * 201, "lines": "on"}, "has 201 lines; the maximum is 200"),
        ({"text": "a" * 100_001}, "is 100,001 characters long"),
    ],
)
def test_what_cannot_be_asked_is_told(console: Gateway, triton: FakeTriton, form: dict[str, str], told: str) -> None:
    response = console.http.post(TRY, data=form, headers=PART)
    assert response.status_code == 422
    assert told in Page(response).text
    assert not triton.calls


def test_a_text_that_the_model_refuses_is_told(console: Gateway, triton: FakeTriton) -> None:
    triton.refused = {"odd"}
    response = console.http.post(TRY, data={"text": "odd"}, headers=PART)
    assert response.status_code == 422
    assert "text is refused by the model" in Page(response).text


def test_whatever_is_typed_is_shown_as_text(console: Gateway) -> None:
    for headers in ({}, PART):
        page = Page(console.http.post(TRY, data={"text": INJECTED}, headers=headers))
        assert page.runs_nothing_but_files()
        assert "{{7*7}}" in page.text
        assert not page.all("img") or all("/console/static/" in str(image["src"]) for image in page.all("img"))
    lines = Page(console.http.post(TRY, data={"text": f"{INJECTED}\nfine", "lines": "on"}))
    assert lines.runs_nothing_but_files()


def test_without_scripts_the_answer_is_a_whole_page(console: Gateway) -> None:
    page = Page(console.http.post(TRY, data={"text": "a terrible day", "lines": "on"}))
    assert [element for element, _ in page.elements[:2]] == ["html", "head"]
    assert "Negative 98.8 %" in page.text
    assert "a terrible day" in page.text
    (box,) = [field for field in page.all("input") if field.get("type") == "checkbox"]
    assert "checked" in box


def test_a_correction_is_kept_as_feedback(console: Gateway) -> None:
    response = console.http.post(FEEDBACK, data={"text": "not\r\nbad", "label": "Positive"}, headers=PART)
    assert response.status_code == 200
    assert "stored as Positive" in Page(response).text
    (row,) = console.kept()
    assert (row.text, row.label, row.source) == ("not\nbad", "Positive", "anonymous")
    told = "evaluated only on labels of trusted sources" if row.held_out else "uses it"
    assert told in response.text
    assert "stored as Positive" in Page(console.http.post(FEEDBACK, data={"text": "b", "label": "Positive"})).text


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ({"text": "a", "label": INJECTED}, "it must be one of Negative, Positive"),
        ({"text": "a"}, "label is empty"),
        ({"label": "Positive"}, "text is empty"),
        ({"text": "a\0", "label": "Positive"}, "NUL"),
    ],
)
def test_what_is_no_correction_is_refused(console: Gateway, form: dict[str, str], told: str) -> None:
    response = console.http.post(FEEDBACK, data=form, headers=PART)
    assert response.status_code == 422
    page = Page(response)
    assert told in page.text
    assert page.runs_nothing_but_files()
    assert not console.kept()


def test_while_the_model_is_down_the_page_says_so(console: Gateway, triton: FakeTriton) -> None:
    triton.error = grpc.StatusCode.UNAVAILABLE
    until(lambda: console.http.get("/health/ready").status_code == 503)
    assert "Not ready" in Page(console.http.get("/")).text
    response = console.http.post(TRY, data={"text": "a"}, headers=PART)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    page = Page(response)
    assert "The model is not available" in page.text
    assert "secret" not in page.text


def test_a_fault_of_ours_is_a_page_that_tells_nothing(console: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(*_: object) -> object:
        raise RuntimeError("the-secret")

    monkeypatch.setattr(gateway.console.pages.try_page, "_answers", break_down)
    response = console.http.post(TRY, data={"text": "a"})
    assert response.status_code == 500
    assert "see the server's log" in Page(response).text
    assert "the-secret" not in response.text


def test_texts_count_towards_a_callers_limit(triton: FakeTriton, tmp_path: Path) -> None:
    settings = Settings(
        triton_url=f"127.0.0.1:{triton.port}",
        state_dir=tmp_path / "state",
        model_repository=tmp_path / "triton_repo",
        admin_key=SecretStr(ADMIN_KEY),
        caller_limit="10/hour",
    )
    app = create_app(settings, Storage(settings), CallStatistics(), UnderWay())
    with served(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=OWN) as http:
        until(lambda: http.get("/health/ready").is_success)
        # The text and three without a word each; a version without a bundle here tells the label alone.
        response = http.post(TRY, data={"text": "one two three"}, headers=PART)
        assert response.status_code == 200
        assert "Positive 98.8 %" in Page(response).text
        refused = http.post(TRY, data={"text": "one two three four five six seven"}, headers=PART)
        assert refused.status_code == 429
        assert "The limit per caller is 10 texts per 1 hour" in Page(refused).text
