"""Which calls' messages are read: unfinished ones keep nobody waiting for long."""

import asyncio
import time
from collections import Counter

import grpc
import pytest

from gateway.grpc_port.messages import MOST_OF_CALLER, MOST_READ, PATIENCE_S, READ_S, Reading, RefusedCallError


async def never() -> bytes:
    await asyncio.sleep(3_600)
    return b""


async def at_once() -> bytes:
    return b"message"


@pytest.mark.parametrize("caller", ["key website", "address this machine"])
def test_unfinished_calls_of_one_caller_keep_nobody_waiting(caller: str) -> None:
    """Not even others who count as the same caller, such as all without a key on this machine."""

    async def scenario() -> tuple[float, Counter[str]]:
        reading = Reading()
        told: Counter[str] = Counter()

        async def unfinished() -> None:
            while True:
                try:
                    await reading.read("address this machine", never)
                except RefusedCallError as error:
                    told[error.code.name] += 1

        attack = [asyncio.create_task(unfinished()) for _ in range(MOST_OF_CALLER - 1)]
        await asyncio.sleep(2 * PATIENCE_S)
        started = time.monotonic()
        for _ in range(3):
            assert await reading.read(caller, at_once) == b"message"
        took = time.monotonic() - started
        for task in attack:
            task.cancel()
        await asyncio.gather(*attack, return_exceptions=True)
        assert not reading._waiting
        assert not reading._being_read
        return took, told

    took, told = asyncio.run(scenario())
    waits = 3 * PATIENCE_S if caller.startswith("key") else 3 * PATIENCE_S * MOST_OF_CALLER / MOST_READ
    assert took < min(waits + 1, READ_S * 2)
    assert told["RESOURCE_EXHAUSTED"] > MOST_READ


def test_a_caller_has_so_many_unfinished_calls_and_the_oldest_gives_way() -> None:
    async def scenario() -> None:
        reading = Reading()
        calls = [asyncio.create_task(reading.read("a", never)) for _ in range(MOST_OF_CALLER)]
        await asyncio.sleep(0.01)
        assert not any(call.done() for call in calls)
        calls.append(asyncio.create_task(reading.read("a", never)))
        await asyncio.sleep(0.01)
        assert [call.done() for call in calls].index(False) == 1
        with pytest.raises(RefusedCallError, match="try again") as caught:
            await calls[0]
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert reading._count == 0

    asyncio.run(scenario())


def test_messages_that_come_are_all_read_however_many_there_are() -> None:
    async def scenario() -> None:
        reading = Reading()

        async def slowly() -> bytes:
            await asyncio.sleep(PATIENCE_S / 10)
            return b"message"

        read = [reading.read(f"caller {number % 3}", slowly) for number in range(3 * MOST_OF_CALLER)]
        assert set(await asyncio.gather(*read)) == {b"message"}
        assert reading._count == 0

    asyncio.run(scenario())


def test_a_message_that_does_not_come_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.grpc_port.messages.READ_S", 0.05)
    with pytest.raises(RefusedCallError, match="did not arrive within") as caught:
        asyncio.run(Reading().read("a", never))
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
