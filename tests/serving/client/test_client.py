"""The client answers any number of texts, from whichever endpoint can, by one version, in time."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.client.client import AsyncClient, Client, InvalidTextError, TritonTimeoutError, TritonUnavailableError
from serving.model_repo.texts import MAX_CHARACTERS, text_fault
from tests.e2e.conftest import PROJECT
from tests.gateway.fake_triton import MODEL_READS, SCORE, FakeTriton


@pytest.fixture
def tritons() -> Iterator[list[FakeTriton]]:
    found = [FakeTriton(), FakeTriton()]
    with ExitStack() as stack:
        for triton in found:
            triton.start()
            stack.callback(triton.stop)
        yield found


@pytest.fixture
def triton(tritons: list[FakeTriton]) -> FakeTriton:
    return tritons[0]


@pytest.fixture
def client(triton: FakeTriton) -> Iterator[Client]:
    with Client(address(triton)) as client:
        yield client


def address(triton: FakeTriton) -> str:
    return f"127.0.0.1:{triton.port}"


def texts_of(count: int) -> list[str]:
    return [f"terrible {number}" if number % 3 == 0 else f"good {number}" for number in range(count)]


def labels_of(texts: list[str]) -> list[str]:
    return ["Negative" if "terrible" in text else "Positive" for text in texts]


def test_imports_nothing_of_the_rest() -> None:
    code = "import sys, serving.client.client; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, check=True, capture_output=True, text=True
    ).stdout.split()
    packages = {module.partition(".")[0] for module in modules}
    assert (packages | set(modules)).isdisjoint(
        {"torch", "transformers", "tokenizers", "onnxruntime", "openvino", "mlflow", "pyarrow", "ray", "pandas"}
        | {
            "fastapi",
            "uvicorn",
            "pydantic",
            "sqlalchemy",
            "gateway",
            "storage",
            "lifecycle",
            "trainer",
            "common.settings",
        }
    )
    ours = [module for module in modules if module.startswith("serving.")]
    assert all(module.startswith(("serving.client", "serving.model_repo")) for module in ours)


@pytest.mark.parametrize("count", [1, 64, 65, 1000])
def test_any_number_of_texts_in_their_order(triton: FakeTriton, client: Client, count: int) -> None:
    texts = texts_of(count)
    answer = client.predict(texts)
    assert answer.labels == labels_of(texts)
    assert answer.scores == pytest.approx([SCORE] * count)
    assert answer.version == 1
    assert len(triton.calls) == -(-count // 64)


def test_no_text_is_no_call(triton: FakeTriton, client: Client) -> None:
    answer = client.predict([])
    assert (answer.labels, answer.scores, answer.version, answer.truncated) == ([], [], None, [])
    assert triton.calls == []


def test_texts_that_were_cut_are_named_by_their_position_in_the_call(client: Client) -> None:
    texts = texts_of(200)
    for position in (3, 64, 199):
        texts[position] += " long" * MODEL_READS
    assert client.predict(texts).truncated == [3, 64, 199]


def test_requests_of_all_calls_together_are_bounded(triton: FakeTriton) -> None:
    under_way, most = 0, 0
    lock = threading.Lock()
    infer = triton.ModelInfer

    def counted(request: Any, context: Any) -> Any:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        try:
            return infer(request, context)
        finally:
            with lock:
                under_way -= 1

    triton.ModelInfer = counted  # type: ignore[method-assign]
    triton.stop()
    triton.start()
    with Client(address(triton), concurrency=3) as client, ThreadPoolExecutor(2) as pool:
        for answer in pool.map(client.predict, [texts_of(640), texts_of(640)]):
            assert answer.labels == labels_of(texts_of(640))
    assert most == 3


def test_one_version_answers_all_texts(triton: FakeTriton, client: Client) -> None:
    def promote(_: list[str]) -> None:
        triton.version = 1 if len(triton.calls) < 4 else 2

    triton.before_answer = promote
    texts = texts_of(640)
    answer = client.predict(texts)
    assert answer.version == 2
    assert answer.labels == labels_of(texts)
    # Those of version 1 were asked again, and no others.
    assert len(triton.calls) == 10 + 3


def test_versions_that_keep_changing_are_told(triton: FakeTriton, client: Client) -> None:
    def promote(_: list[str]) -> None:
        triton.version += 1

    triton.before_answer = promote
    with pytest.raises(TritonUnavailableError, match="the model's version kept changing"):
        client.predict(texts_of(128), timeout_s=0.5)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "is empty or only blanks"),
        (" \u200b\n", "is empty or only blanks"),
        ("good \ud83d", r"has half of a surrogate pair, \\ud83d, at position 5"),
        ("a" * (MAX_CHARACTERS + 1), "is 100,001 characters long; at most 100,000 are allowed"),
    ],
)
def test_a_wrong_text_is_named_and_nothing_is_sent(triton: FakeTriton, client: Client, text: str, fault: str) -> None:
    with pytest.raises(InvalidTextError, match=rf"^texts\[130\] {fault}") as caught:
        client.predict([*texts_of(130), text, ""])
    assert caught.value.position == 130
    assert triton.calls == []


@pytest.mark.parametrize(("texts", "message"), [("one", "this is one text"), (["a", None], r"texts\[1\] is NoneType")])
def test_what_is_no_list_of_strings_is_refused(client: Client, texts: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        client.predict(texts)


def test_what_triton_refuses_is_named_and_not_tried_again(triton: FakeTriton, client: Client) -> None:
    texts = texts_of(150)
    triton.refused = {texts[70]}
    with pytest.raises(InvalidTextError, match=r"^texts\[64\] or one after it: the model cannot read 'good 70'"):
        client.predict(texts)
    assert sum(texts[70] in call for call in triton.calls) == 1


def test_triton_that_starts_late_is_waited_for(triton: FakeTriton) -> None:
    triton.stop()
    threading.Timer(0.7, triton.start).start()
    with Client(address(triton)) as client:
        assert client.predict(["good"], timeout_s=30).labels == ["Positive"]


@pytest.mark.parametrize(
    ("status", "error"),
    [(grpc.StatusCode.UNAVAILABLE, TritonUnavailableError), (grpc.StatusCode.DEADLINE_EXCEEDED, TritonTimeoutError)],
)
def test_time_is_up_with_the_last_reason(
    triton: FakeTriton, client: Client, status: grpc.StatusCode, error: type[Exception]
) -> None:
    triton.error = status
    with pytest.raises(error, match=f"no answer in time from {address(triton)}: secret"):
        client.predict(["good"], timeout_s=1)
    # It was tried again, with longer and longer pauses in between.
    assert 2 <= len(triton.calls) < 40


def test_deadline_holds_for_the_whole_call(triton: FakeTriton) -> None:
    triton.delay_s = 0.2
    with Client(address(triton), concurrency=1) as client:
        started = time.monotonic()
        with pytest.raises(TritonTimeoutError):
            client.predict(texts_of(64 * 100), timeout_s=1)
        assert time.monotonic() - started < 10  # not the 20 s that it would take
        assert len(triton.calls) < 20


def test_endpoints_are_asked_in_turns(tritons: list[FakeTriton]) -> None:
    texts = texts_of(640)
    with Client([address(triton) for triton in tritons]) as client:
        assert client.predict(texts).labels == labels_of(texts)
    assert [len(triton.calls) for triton in tritons] == [5, 5]


def test_a_dead_endpoint_is_left_alone_and_tried_again_later(tritons: list[FakeTriton]) -> None:
    dead, alive = tritons
    dead.error = grpc.StatusCode.UNAVAILABLE
    texts = texts_of(6400)
    with Client([address(triton) for triton in tritons]) as client:
        assert client.predict(texts).labels == labels_of(texts)
        assert len(alive.calls) == 100
        # Those under way together when it failed first, and then one after each rest.
        assert 1 <= len(dead.calls) <= 20
        dead.error = None
        deadline = time.monotonic() + 30
        while sum(texts_of(1) == call for call in dead.calls) == 0:
            client.predict(texts_of(1))
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_an_endpoint_that_hangs_does_not_use_up_the_time(tritons: list[FakeTriton]) -> None:
    hanging, alive = tritons
    hanging.delay_s = 3.0
    with Client([address(triton) for triton in tritons]) as client:
        assert client.predict(["good"], timeout_s=2).labels == ["Positive"]
    assert len(alive.calls) == 1


@pytest.mark.parametrize("endpoints", [[], "localhost", "http://localhost:8001"])
def test_what_is_no_endpoint_is_told(endpoints: Any) -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="`host:port`"):
        Client(endpoints)
    assert threading.active_count() == before


def test_closed_client_says_so(client: Client) -> None:
    client.predict(["good"])
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.predict(["good"])


def test_asyncio_client(triton: FakeTriton) -> None:
    async def ask() -> None:
        async with AsyncClient(address(triton)) as client:
            answers = await asyncio.gather(*(client.predict(texts_of(count)) for count in (1, 100, 200)))
            assert [answer.labels for answer in answers] == [labels_of(texts_of(count)) for count in (1, 100, 200)]
            with pytest.raises(InvalidTextError):
                await client.predict([""])

    asyncio.run(ask())


@settings(max_examples=60)
@given(st.lists(st.text(max_size=20), max_size=150))
def test_every_text_that_can_be_sent_arrives_as_it_is(triton: FakeTriton, client: Client, texts: list[str]) -> None:
    sent = [text for text in texts if text_fault(text) is None]
    triton.calls.clear()
    assert client.predict(sent).labels == labels_of(sent)
    assert sorted(text for call in triton.calls for text in call) == sorted(sent)
