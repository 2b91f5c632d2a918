import json
import threading
import time

import httpx
import pytest

from gateway.http.validation import MAX_TEXTS
from gateway.inference.batch_splitting import VERSION_TRIES
from serving.backend.cpu import usable_cores
from serving.model_repo.protocol import MAX_BATCH_SIZE
from tests.gateway.conftest import until
from tests.gateway.fake_triton import MODEL_READS, FakeTriton

LONG = "a" * (MODEL_READS + 1)


def batch(http: httpx.Client, texts: list[str]) -> httpx.Response:
    return http.post("/predict/batch", json={"texts": texts})


def test_live_answers_exactly_the_contract(http: httpx.Client, triton: FakeTriton) -> None:
    response = http.post("/predict/live", json={"text": "I love this product!"})
    assert response.status_code == 200
    assert response.content == b'{"predictions":{"label":{"0":"Positive"},"score":{"0":0.9875}}}'
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-model-version"] == "1"
    assert "x-truncated-texts" not in response.headers
    assert triton.calls == [["I love this product!"]]


def test_batch_answers_exactly_the_contract(http: httpx.Client, triton: FakeTriton) -> None:
    triton.version = 7
    response = batch(http, ["Lovely.", "This is terrible."])
    assert response.status_code == 200
    assert response.content == (
        b'{"predictions":{"label":{"0":"Positive","1":"Negative"},"score":{"0":0.9875,"1":0.9875}}}'
    )
    assert response.headers["x-model-version"] == "7"
    assert "x-truncated-texts" not in response.headers


@pytest.mark.parametrize(
    "text",
    [
        "\u200bword\u200b",
        "\u202eright to left",
        "nul \x00 inside",
        "👩‍👩‍👧 emoji",
        "日本語",
        "é",
        "e\u0301",
        '{"text": "quoted"}',
        "text",
        "a" * 100_000,
        "😀" * 100_000,
    ],
    ids=lambda text: ascii(text[:12]),
)
def test_every_text_reaches_the_model_unchanged(http: httpx.Client, triton: FakeTriton, text: str) -> None:
    for escaped in (True, False):
        body = json.dumps({"text": text}, ensure_ascii=escaped)
        response = http.post("/predict/live", content=body, headers={"content-type": "application/json"})
        assert response.status_code == 200
    assert triton.calls == [[text], [text]]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_content_type_may_have_parameters_and_any_case(
    http: httpx.Client, triton: FakeTriton, content_type: str
) -> None:
    response = http.post("/predict/live", content=b'{"text":"a"}', headers={"content-type": content_type})
    assert response.status_code == 200
    assert triton.calls


def test_long_batch_is_split_and_keeps_its_order(http: httpx.Client, triton: FakeTriton) -> None:
    texts = [f"{'terrible' if number % 3 == 0 else 'fine'} {number}" for number in range(MAX_TEXTS)]
    response = batch(http, texts)
    labels = response.json()["predictions"]["label"]
    assert list(labels) == [str(number) for number in range(MAX_TEXTS)]
    assert list(labels.values()) == ["Negative" if number % 3 == 0 else "Positive" for number in range(MAX_TEXTS)]
    assert len(triton.calls) == -(-MAX_TEXTS // MAX_BATCH_SIZE)


def test_long_batch_has_a_call_for_each_core_and_one_ahead(http: httpx.Client, triton: FakeTriton) -> None:
    texts = [str(number) for number in range(MAX_TEXTS)]
    triton.held = set(texts)
    triton.may_answer.clear()
    asking = threading.Thread(target=batch, args=(http, texts))
    asking.start()
    until(lambda: len(triton.calls) == usable_cores() + 1)
    time.sleep(0.05)
    assert len(triton.calls) == usable_cores() + 1
    triton.may_answer.set()
    asking.join()


def test_equal_texts_of_a_batch_are_inferred_once(http: httpx.Client, triton: FakeTriton) -> None:
    response = batch(http, ["same", LONG, "same", "terrible", LONG])
    assert response.json()["predictions"]["label"] == {
        "0": "Positive",
        "1": "Positive",
        "2": "Positive",
        "3": "Negative",
        "4": "Positive",
    }
    assert response.headers["x-truncated-texts"] == "1,4"
    assert triton.calls == [["same", LONG, "terrible"]]


@pytest.mark.usefixtures("triton")
def test_cut_texts_are_named_across_chunks(http: httpx.Client) -> None:
    assert http.post("/predict/live", json={"text": LONG}).headers["x-truncated-texts"] == "0"
    texts = [f"{number}" for number in range(3 * MAX_BATCH_SIZE)]
    texts[0] = f"first {LONG}"
    texts[2 * MAX_BATCH_SIZE + 5] = f"last {LONG}"
    assert batch(http, texts).headers["x-truncated-texts"] == f"0,{2 * MAX_BATCH_SIZE + 5}"


def test_headers_fit_four_kilobytes_whichever_texts_are_cut(http: httpx.Client, triton: FakeTriton) -> None:
    triton.version = 1000
    # Of every three texts two are cut: no other texts take more room.
    response = batch(http, [f"{LONG if number % 3 else ''}{number}" for number in range(MAX_TEXTS)])
    assert response.status_code == 200
    ranges = [(first, first + 1) for first in range(1, MAX_TEXTS - 1, 3)]
    assert response.headers["x-truncated-texts"] == ",".join(f"{first}-{last}" for first, last in ranges)
    assert sum(len(name) + len(value) + 4 for name, value in response.headers.raw) + 17 <= 4096


def test_batch_around_a_swap_is_answered_by_the_new_version_alone(http: httpx.Client, triton: FakeTriton) -> None:
    def swap(texts: list[str]) -> None:
        if f"{5 * MAX_BATCH_SIZE}" in texts:
            triton.version = 2

    triton.before_answer = swap
    texts = [str(number) for number in range(6 * MAX_BATCH_SIZE)]
    response = batch(http, texts)
    assert response.status_code == 200
    assert response.headers["x-model-version"] == "2"
    asked_of_new = [text for call in triton.calls[6:] for text in call]
    assert len(triton.calls) >= 7, "the chunks answered before the swap are asked again"
    assert len(asked_of_new) == len(set(asked_of_new)), "each of them once"


def test_batch_gives_up_when_versions_keep_changing(http: httpx.Client, triton: FakeTriton) -> None:
    # Each call a version of its own: two chunks can never agree.
    def swap(_texts: list[str]) -> None:
        triton.version += 1

    triton.before_answer = swap
    response = batch(http, [str(number) for number in range(3 * MAX_BATCH_SIZE)])
    assert response.status_code == 503
    assert response.json()["type"] == "urn:sentiment:problem:model-unavailable"
    assert len(triton.calls) == 3 + 2 * (VERSION_TRIES - 1)


def test_refused_text_of_a_live_request_is_named(http: httpx.Client, triton: FakeTriton) -> None:
    triton.refused = {"poison"}
    response = http.post("/predict/live", json={"text": "poison"})
    assert response.status_code == 422
    assert response.json()["errors"] == [
        {"field": "text", "message": "is refused by the model: the model cannot read 'poison'"}
    ]


def test_refused_texts_of_a_batch_are_all_named(http: httpx.Client, triton: FakeTriton) -> None:
    triton.refused = {"poison", "venom"}
    texts = [str(number) for number in range(2 * MAX_BATCH_SIZE)]
    texts[3] = texts[70] = "poison"
    texts[100] = "venom"
    response = batch(http, texts)
    assert response.status_code == 422
    assert [error["field"] for error in response.json()["errors"]] == ["texts[3]", "texts[70]", "texts[100]"]
    assert response.json()["detail"].endswith("(and 2 more, see errors)")
