"""A call to Triton that is given up is not cancelled; Triton is told in a request of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from serving.client.errors import TritonTimeoutError
from serving.client.triton_client import TritonClient
from tests.gateway.fake_triton import FakeTriton


@pytest.fixture
def triton() -> Iterator[FakeTriton]:
    started = FakeTriton()
    started.start()
    started.may_answer.clear()
    started.held.add("held")
    yield started
    started.may_answer.set()
    started.stop()


async def until(condition: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + 20
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


async def time_out(triton: FakeTriton, client: TritonClient) -> None:
    with pytest.raises(TritonTimeoutError):
        await client.classify(["held"], 0.1)
    await until(lambda: len(triton.calls) == 1)


async def cancel(triton: FakeTriton, client: TritonClient) -> None:
    call = asyncio.create_task(client.classify(["held"], 30))
    await until(lambda: len(triton.calls) == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


@pytest.mark.parametrize("give_up", [time_out, cancel])
def test_a_call_that_is_given_up_goes_on_and_its_name_is_told(
    triton: FakeTriton, give_up: Callable[[FakeTriton, TritonClient], Awaitable[None]]
) -> None:
    async def main() -> None:
        client = TritonClient(f"127.0.0.1:{triton.port}")
        await give_up(triton, client)
        await until(lambda: triton.abandoned == triton.names)
        # Others are answered meanwhile, over the same connection.
        assert (await client.classify(["another"], 20)).labels == ["Positive"]
        assert not triton.cancelled
        triton.may_answer.set()
        await until(lambda: triton.answered_calls == 2)
        assert not triton.cancelled
        await client.close()

    asyncio.run(main())


@pytest.mark.parametrize("give_up", [time_out, cancel])
def test_a_program_cancels_what_it_gives_up(
    triton: FakeTriton, give_up: Callable[[FakeTriton, TritonClient], Awaitable[None]]
) -> None:
    async def main() -> None:
        client = TritonClient(f"127.0.0.1:{triton.port}", cancels=True)
        await give_up(triton, client)
        await until(lambda: triton.cancelled == [["held"]])
        assert triton.abandoned == []
        await client.close()

    asyncio.run(main())


def test_a_call_that_is_answered_is_not_given_up(triton: FakeTriton) -> None:
    async def main() -> None:
        client = TritonClient(f"127.0.0.1:{triton.port}")
        for _ in range(20):
            await client.classify(["another"], 20)
        await client.close()

    asyncio.run(main())
    assert len(set(triton.names)) == 20
    assert triton.abandoned == []
