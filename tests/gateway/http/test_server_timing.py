"""`Server-Timing`: what the engine told of the call that answered, and that an answer was known."""

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import gateway.main
from tests.gateway.conftest import make_app, served, until
from tests.gateway.fake_triton import FakeTriton


@pytest.fixture
def caching(triton: FakeTriton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    monkeypatch.setattr(gateway.main, "MAX_BYTES", 1_000_000)
    with (
        served(make_app(triton, tmp_path)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        until(lambda: client.get("/health/ready").is_success)
        yield client


def live(client: httpx.Client, text: str) -> httpx.Response:
    return client.post("/predict/live", json={"text": text}).raise_for_status()


def batch(client: httpx.Client, texts: list[str]) -> httpx.Response:
    return client.post("/predict/batch", json={"texts": texts}).raise_for_status()


def told(response: httpx.Response) -> dict[str, float]:
    parts = [part.partition(";dur=") for part in response.headers["server-timing"].split(", ")]
    return {name: float(milliseconds) for name, _, milliseconds in parts}


def test_what_the_engine_told_of_the_call(caching: httpx.Client, triton: FakeTriton) -> None:
    triton.phases = (0.001, 0.002, 0.003)
    triton.delay_s = 0.02
    for answer in (live(caching, "one"), batch(caching, ["two", "three"])):
        timing = told(answer)
        assert list(timing) == ["queue", "tokenize", "graph", "total"]
        assert (timing["tokenize"], timing["graph"]) == (1.0, 3.0)
        assert timing["queue"] >= 2.0
        assert timing["total"] >= 20.0


def test_a_known_answer_says_so(caching: httpx.Client, triton: FakeTriton) -> None:
    live(caching, "one")
    asked = len(triton.calls)
    for answer in (live(caching, "one"), batch(caching, ["one", "one"])):
        assert answer.headers["server-timing"] == "cache;desc=hit"
    assert len(triton.calls) == asked
    assert list(told(batch(caching, ["one", "two"]))) == ["total"], "one of them was asked for"


def test_all_that_share_a_call_are_told_of_it_and_of_their_own_wait(caching: httpx.Client, triton: FakeTriton) -> None:
    triton.phases = (0.001, 0.0, 0.004)
    triton.held = {"first"}
    triton.may_answer.clear()
    answers: list[httpx.Response] = []

    def ask(text: str) -> None:
        answers.append(live(caching, text))

    asked = [threading.Thread(target=ask, args=(text,)) for text in ("first", "same", "same", "other")]
    asked[0].start()
    until(lambda: bool(triton.calls))
    for thread in asked[1:]:
        thread.start()
    until(lambda: {text for call in triton.calls for text in call} == {"first", "same", "other"})
    triton.may_answer.set()
    for thread in asked:
        thread.join()
    assert len(answers) == 4
    # A request that came when its answer had been given already is told so.
    assert sum(told(answer).get("graph") == 4.0 for answer in answers if "dur" in answer.headers["server-timing"]) >= 3
