"""Callers take turns: whoever sends much waits behind those who send little."""

import asyncio

import pytest

from gateway.load_control.turns import FairQueue, Turns


def test_callers_take_turns_and_each_keeps_its_order() -> None:
    queue: FairQueue[str] = FairQueue()
    for number in range(4):
        queue.put("many", f"many {number}")
    queue.put("one", "one 0")
    assert queue.first() == "many 0"
    assert [queue.take() for _ in range(len(queue))] == ["many 0", "one 0", "many 1", "many 2", "many 3"]
    assert not queue


def test_a_place_goes_to_the_caller_whose_turn_it_is_and_none_to_one_that_has_left() -> None:
    async def check() -> None:
        turns = Turns(1)
        order: list[str] = []
        may_end = asyncio.Event()

        async def work(caller: str, name: str) -> None:
            async with turns.turn(caller):
                order.append(name)
                await may_end.wait()

        tasks = {name: asyncio.create_task(work(name[0], name)) for name in ("a1", "a2", "a3", "b1", "b2")}
        await asyncio.sleep(0)
        tasks["b2"].cancel()
        may_end.set()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        assert order == ["a1", "a2", "b1", "a3"]
        async with turns.turn("c"):
            pass

    asyncio.run(check())


def test_a_place_that_was_given_to_a_caller_that_leaves_at_that_moment_is_given_on() -> None:
    async def check() -> None:
        turns = Turns(1)

        async def work() -> None:
            async with turns.turn("a"):
                await asyncio.sleep(0)

        first, second = asyncio.create_task(work()), asyncio.create_task(work())
        await asyncio.sleep(0)
        await first
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        await asyncio.wait_for(work(), 5)

    asyncio.run(check())


def test_turns_for_many_places_are_not_overtaken_by_those_for_few() -> None:
    async def check() -> None:
        turns = Turns(10)
        order: list[str] = []
        may_end = asyncio.Event()

        async def work(name: str, places: int) -> None:
            async with turns.turn("a", places):
                order.append(name)
                await may_end.wait()

        # There is room for the third, but with a stream of small ones a large one would never go.
        tasks = [asyncio.create_task(work(*call)) for call in (("first", 8), ("second", 4), ("third", 1))]
        await asyncio.sleep(0.01)
        assert order == ["first"]
        may_end.set()
        await asyncio.gather(*tasks)
        assert order == ["first", "second", "third"]

    asyncio.run(check())


def test_a_caller_that_waits_too_long_or_leaves_holds_nobody_back() -> None:
    async def check() -> None:
        turns = Turns(10)

        async def work(places: int, within_s: float = 5) -> None:
            async with turns.turn("a", places, within_s):
                pass

        async with turns.turn("a", 8):
            leaving = asyncio.create_task(work(10))
            late = asyncio.create_task(work(10, 0.05))
            fits = asyncio.create_task(work(2))
            await asyncio.sleep(0.01)
            assert not fits.done()
            leaving.cancel()
            with pytest.raises(asyncio.TimeoutError):
                await late
            await asyncio.wait_for(fits, 1)
        await asyncio.gather(leaving, return_exceptions=True)
        await asyncio.wait_for(work(10), 1)

    asyncio.run(check())
