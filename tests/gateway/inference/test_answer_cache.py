import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.inference.answer_cache import MAX_CHARACTERS, AnswerCache
from serving.client.prediction import Prediction
from tests.gateway.conftest import make_app, served, until
from tests.gateway.fake_triton import MODEL_READS, FakeTriton

LONG = "a" * (MODEL_READS + 1)


@pytest.fixture
def caching(triton: FakeTriton, tmp_path: Path) -> Iterator[httpx.Client]:
    """A gateway that knows no answers yet."""
    with (
        served(make_app(triton, tmp_path)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        yield client


def live(http: httpx.Client, text: str) -> httpx.Response:
    return http.post("/predict/live", json={"text": text})


def batch(http: httpx.Client, *texts: str) -> httpx.Response:
    return http.post("/predict/batch", json={"texts": texts})


def version(response: httpx.Response) -> int:
    assert response.status_code == 200
    return int(response.headers["x-model-version"])


def replace_version(triton: FakeTriton) -> None:
    with triton.lock:
        triton.version, triton.score = 2, 0.75


@pytest.mark.parametrize("text", ["terrible", LONG])
def test_known_text_gets_the_same_answer_without_the_model(
    caching: httpx.Client, triton: FakeTriton, text: str
) -> None:
    first, second = live(caching, text), live(caching, text)
    assert second.status_code == 200
    assert second.content == first.content
    for name in ("x-model-version", "x-truncated-texts", "content-type", "content-length"):
        assert second.headers.get(name) == first.headers.get(name)
    assert triton.calls == [[text]]


def test_batch_and_live_requests_know_each_others_answers(caching: httpx.Client, triton: FakeTriton) -> None:
    live(caching, LONG)
    response = batch(caching, "terrible", LONG, "fine")
    assert list(response.json()["predictions"]["label"].values()) == ["Negative", "Positive", "Positive"]
    assert response.headers["x-truncated-texts"] == "1"
    assert batch(caching, "fine", "terrible").status_code == 200
    assert live(caching, "terrible").json()["predictions"]["label"] == {"0": "Negative"}
    assert triton.calls == [[LONG], ["terrible", "fine"]]


def test_new_version_is_noticed_though_every_text_is_known(caching: httpx.Client, triton: FakeTriton) -> None:
    assert version(live(caching, "same")) == 1
    replace_version(triton)

    def answered_by_the_new() -> bool:
        response = live(caching, "same")
        # Whoever answers, the header tells the truth about it.
        assert response.json()["predictions"]["score"]["0"] == {1: 0.9875, 2: 0.75}[version(response)]
        return version(response) == 2

    until(answered_by_the_new)
    assert version(live(caching, "same")) == 2
    assert triton.calls == [["same"], ["same"]]


def test_return_to_an_older_version_is_noticed(caching: httpx.Client, triton: FakeTriton) -> None:
    replace_version(triton)
    until(lambda: version(live(caching, "same")) == 2)
    triton.version = 1
    until(lambda: version(live(caching, "same")) == 1)


def test_late_answer_of_the_old_version_is_told_as_such_and_not_kept(caching: httpx.Client, triton: FakeTriton) -> None:
    triton.held = {"late"}
    triton.may_answer.clear()
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(live(caching, "late")))
    asking.start()
    until(lambda: ["late"] in triton.calls)
    replace_version(triton)
    until(lambda: version(live(caching, "other")) == 2)
    asked = len(triton.calls)
    triton.may_answer.set()
    asking.join()
    assert version(answers[0]) == 1
    assert answers[0].json()["predictions"]["score"] == {"0": 0.9875}
    assert version(live(caching, "other")) == 2
    assert len(triton.calls) == asked, "the new version's answers are still known"
    assert version(live(caching, "late")) == 2
    assert triton.calls[asked:] == [["late"]]


def test_batch_of_known_and_new_texts_around_a_swap_is_answered_by_the_new_version_alone(
    caching: httpx.Client, triton: FakeTriton
) -> None:
    batch(caching, "a", "b")
    replace_version(triton)
    response = batch(caching, "a", "new", "b")
    assert version(response) == 2
    assert set(response.json()["predictions"]["score"].values()) == {0.75}


def test_known_texts_are_answered_while_nobody_else_is_and_the_gateway_is_not_ready(
    caching: httpx.Client, triton: FakeTriton
) -> None:
    batch(caching, "known", "too")
    triton.error = grpc.StatusCode.UNAVAILABLE
    until(lambda: caching.get("/health/ready").status_code == 503)
    assert version(live(caching, "known")) == 1
    assert version(batch(caching, "too", "known")) == 1
    assert live(caching, "unknown").status_code == 503
    assert batch(caching, "known", "unknown").status_code == 503


def test_refused_text_is_not_kept(caching: httpx.Client, triton: FakeTriton) -> None:
    triton.refused = {"poison"}
    assert live(caching, "poison").status_code == 422
    triton.refused = set()
    assert live(caching, "poison").status_code == 200


def test_longer_texts_are_not_kept(caching: httpx.Client, triton: FakeTriton) -> None:
    kept, not_kept = "a" * MAX_CHARACTERS, "a" * (MAX_CHARACTERS + 1)
    for _ in range(2):
        live(caching, kept)
        live(caching, not_kept)
    assert triton.calls == [[kept], [not_kept], [not_kept]]


def test_headers_that_a_middleware_adds_do_not_pile_up_on_known_answers(triton: FakeTriton, tmp_path: Path) -> None:
    class Stamp:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            async def stamped(message: Message) -> None:
                if message["type"] == "http.response.start":
                    MutableHeaders(scope=message).append("x-stamp", "1")
                await send(message)

            await self.app(scope, receive, stamped)

    app = make_app(triton, tmp_path)
    app.add_middleware(Stamp)
    with served(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
        assert [live(http, "same").headers.get_list("x-stamp") for _ in range(3)] == [["1"]] * 3


def answer(text: str, by: int = 1) -> Prediction:
    return Prediction("Positive", len(text) / 7, by, False, bytes(8))


def test_texts_that_were_not_asked_for_the_longest_make_room() -> None:
    cache = AnswerCache(2_000)
    cache.turn_to(1)
    for text in ("often", "once", *map(str, range(20))):
        cache.put(text, answer(text))
        assert cache.get("often")
    assert cache.get("19")
    assert not cache.get("once")


def test_hits_and_misses_are_counted() -> None:
    cache = AnswerCache(10_000)
    cache.turn_to(1)
    cache.put("a", answer("a"))
    for text in ("a", "b", "a", "a" * (MAX_CHARACTERS + 1)):
        cache.get(text)
    assert (cache.hits, cache.misses) == (2, 2)


@pytest.mark.parametrize(
    "sample", ["a", "review of the usual length, which is about 130 characters " * 2, "日本語" * 30]
)
def test_memory_is_bounded_as_promised(sample: str) -> None:
    bound = 4 * 1024 * 1024
    tracemalloc.start()
    try:
        cache = AnswerCache(bound)
        for version in (1, 2):
            cache.turn_to(version)
            for number in range(30_000):
                text = f"{sample}{number}"
                cache.put(text, answer(text, version))
            held, _ = tracemalloc.get_traced_memory()
            assert 0.6 * bound < held <= bound
    finally:
        tracemalloc.stop()
