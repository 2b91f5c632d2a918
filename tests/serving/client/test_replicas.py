"""Several Tritons asked as one: servers that speak Triton's gRPC and do what the test tells them."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import grpc
import pytest

from serving.client import replicas
from serving.client.errors import TritonTimeoutError, TritonUnavailableError
from serving.client.replicas import Replicas
from tests.gateway.fake_triton import FakeTriton


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "WATCH_INTERVAL_S", 0.05)
    monkeypatch.setattr(replicas, "RESOLVE_INTERVAL_S", 0.1)


@pytest.fixture
def tritons() -> Iterator[list[FakeTriton]]:
    started = [FakeTriton() for _ in range(3)]
    for triton in started:
        triton.start()
    yield started
    for triton in started:
        triton.stop()


def url(tritons: list[FakeTriton]) -> str:
    return ",".join(f"127.0.0.1:{triton.port}" for triton in tritons)


def run(
    tritons: list[FakeTriton],
    scenario: Callable[[Replicas], Awaitable[None]],
    deployed: Callable[[], int | None] = lambda: None,
    *,
    watched: bool = True,
) -> None:
    async def main() -> None:
        asked = Replicas(url(tritons), deployed)
        watch = asyncio.create_task(asked.watch() if watched else asyncio.sleep(0))
        try:
            await scenario(asked)
        finally:
            watch.cancel()
            await asked.close()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + 20
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


async def ask(asked: Replicas, number: int, timeout_s: float = 20) -> Counter[int]:
    """The versions that so many texts are answered by, asked one after the other."""
    return Counter([(await asked.classify([f"text {text}"], timeout_s)).version for text in range(number)])


def test_calls_go_to_the_least_busy_and_to_equals_in_turns(tritons: list[FakeTriton]) -> None:
    async def scenario(asked: Replicas) -> None:
        await ask(asked, 9)
        assert [len(triton.calls) for triton in tritons] == [3, 3, 3]
        tritons[0].held.add("slow")
        tritons[0].may_answer.clear()
        slow = [asyncio.create_task(asked.classify(["slow"], 20)) for _ in range(3)]
        await until(lambda: sum(len(triton.calls) for triton in tritons) == 12)
        await ask(asked, 6)
        # One of its calls is under way; the others' are done.
        assert len(tritons[0].calls) == 4
        tritons[0].may_answer.set()
        await asyncio.gather(*slow)

    # A probe under way would make the one that it asks the busier.
    run(tritons, scenario, watched=False)


@pytest.mark.parametrize("status", [grpc.StatusCode.INTERNAL, grpc.StatusCode.NOT_FOUND])
def test_what_one_fails_another_answers_and_it_is_asked_again_when_it_answers_a_probe(
    tritons: list[FakeTriton], status: grpc.StatusCode
) -> None:
    async def scenario(asked: Replicas) -> None:
        tritons[1].error = status
        assert await ask(asked, 12) == {1: 12}
        assert len(tritons[1].calls) <= 1
        tritons[1].error = None
        tritons[1].probes = 0
        await until(lambda: tritons[1].probes > 0)
        before = len(tritons[1].calls)
        await ask(asked, 12)
        assert len(tritons[1].calls) > before

    run(tritons, scenario)


def test_a_dead_one_costs_no_answer_and_comes_back(tritons: list[FakeTriton]) -> None:
    async def scenario(asked: Replicas) -> None:
        tritons[2].held.add("under way")
        tritons[2].may_answer.clear()
        under_way = [asyncio.create_task(asked.classify(["under way"], 20)) for _ in range(3)]
        await until(lambda: sum(len(triton.calls) for triton in tritons) == 3)
        await asyncio.to_thread(tritons[2].stop)
        assert [answer.version for answer in await asyncio.gather(*under_way)] == [1, 1, 1]
        assert await ask(asked, 12) == {1: 12}
        tritons[2].may_answer.set()
        tritons[2].start()
        before = len(tritons[2].calls)
        while len(tritons[2].calls) == before:
            await ask(asked, 1)

    run(tritons, scenario)


def test_where_all_fail_the_error_is_told(tritons: list[FakeTriton]) -> None:
    async def scenario(asked: Replicas) -> None:
        for triton in tritons:
            triton.error = grpc.StatusCode.INTERNAL
        for _ in range(4):
            with pytest.raises(TritonUnavailableError):
                await asked.classify(["text"], 20)
        for triton in tritons:
            triton.error = None
        assert await ask(asked, 3) == {1: 3}

    run(tritons, scenario, watched=False)


def test_one_that_answers_in_no_time_is_avoided(tritons: list[FakeTriton]) -> None:
    async def scenario(asked: Replicas) -> None:
        tritons[0].delay_s = 3
        timeouts = 0
        for text in range(9):
            try:
                await asked.classify([f"text {text}"], 1.0)
            except TritonTimeoutError:
                timeouts += 1
        assert timeouts == 1
        assert len(tritons[0].calls) == 1

    run(tritons, scenario, watched=False)


def test_one_that_answers_by_another_version_is_not_asked_until_it_agrees(tritons: list[FakeTriton]) -> None:
    deployed = 1

    async def scenario(asked: Replicas) -> None:
        nonlocal deployed
        await ask(asked, 3)
        for triton in tritons[:2]:
            triton.version = 2
        deployed = 2
        while await ask(asked, 20) != {2: 20}:
            pass
        before = len(tritons[2].calls)
        assert await ask(asked, 30) == {2: 30}
        assert len(tritons[2].calls) == before
        tritons[2].version = 2
        while len(tritons[2].calls) == before:
            assert await ask(asked, 1) == {2: 1}
            await asyncio.sleep(0.01)

    run(tritons, scenario, lambda: deployed)


def test_a_version_that_nobody_should_answer_by_is_better_than_no_answer(tritons: list[FakeTriton]) -> None:
    async def scenario(asked: Replicas) -> None:
        await ask(asked, 3)
        await asyncio.sleep(0.3)
        assert await ask(asked, 9) == {1: 9}

    run(tritons, scenario, lambda: 2)


def test_one_alone_is_asked_whatever_is_known_of_it(tritons: list[FakeTriton]) -> None:
    async def scenario(asked: Replicas) -> None:
        tritons[0].error = grpc.StatusCode.INTERNAL
        with pytest.raises(TritonUnavailableError):
            await asked.classify(["text"], 20)
        tritons[0].error = None
        assert await ask(asked, 1) == {1: 1}
        await asyncio.sleep(0.3)
        assert tritons[0].probes == 0
        assert len(tritons[0].calls) == 2

    run(tritons[:1], scenario, lambda: 2)


def test_the_addresses_of_a_name_are_followed(tritons: list[FakeTriton], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, _ = tritons
    found = [f"127.0.0.1:{first.port}"]
    monkeypatch.setattr("serving.client.addresses.find", lambda _: list(found))

    async def scenario() -> None:
        asked = Replicas("dns:///triton.internal:8001")
        assert await ask(asked, 2) == {1: 2}
        watch = asyncio.create_task(asked.watch())
        found.append(f"127.0.0.1:{second.port}")
        while not second.calls:
            await ask(asked, 1)
        first.held.add("under way")
        first.may_answer.clear()
        under_way = [asyncio.create_task(asked.classify(["under way"], 20)) for _ in range(2)]
        await until(lambda: ["under way"] in first.calls)
        del found[0]
        before = -1
        while len(first.calls) != before:
            before = len(first.calls)
            await asyncio.sleep(0.3)
            await ask(asked, 2)
        first.may_answer.set()
        # What was under way when the address went is answered.
        assert [answer.version for answer in await asyncio.gather(*under_way)] == [1, 1]
        watch.cancel()
        await asked.close()

    asyncio.run(scenario())
