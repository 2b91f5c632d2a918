"""What is accepted, as the rate is measured."""

import asyncio
import math

import pytest

import gateway.load_control.backlog
from gateway.http.problems import ModelTimeoutError, OverloadedError
from gateway.load_control.backlog import Backlog


@pytest.fixture(autouse=True)
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.load_control.backlog, "WINDOW_S", 0.01)


async def slowed() -> Backlog:
    """One that is full, and was measured at less than a hundred a second; 998 are not done."""
    backlog = Backlog(math.inf)
    backlog.enter(1_000, 60, "one")
    # The first window, which began with nothing to do, tells nothing.
    for _ in range(2):
        assert backlog.is_full(0.02, "one")
        await asyncio.sleep(0.02)
        backlog.leave(1, "one", done=True)
    assert backlog.rate < 100
    return backlog


def test_a_full_second_tells_the_rate_and_so_the_bound() -> None:
    async def check() -> None:
        backlog = await slowed()
        with pytest.raises(OverloadedError) as refused:
            backlog.enter(50, 10, "one")
        assert refused.value.retry_after_s == pytest.approx(998 / backlog.rate)
        with pytest.raises(ModelTimeoutError):
            backlog.enter(1_000_000, 1, "one")

    asyncio.run(check())


def test_refusals_of_those_who_allow_no_time_say_nothing_of_the_rate() -> None:
    """Else whoever sends deadlines of 3 ms had everybody refused, long after."""

    async def check() -> None:
        backlog = Backlog(2.0)
        backlog.enter(100, 60, "one")  # there is always something under way
        for _ in range(20):
            backlog.enter(100, 60, "one")
            assert backlog.is_full(0.001, "another")
            await asyncio.sleep(0.02)
            backlog.leave(100, "one", done=True)
        assert backlog.rate == gateway.load_control.backlog.FIRST_RATE

    asyncio.run(check())


def test_a_slow_past_refuses_nothing_that_is_alone() -> None:
    async def check() -> None:
        backlog = await slowed()
        backlog.leave(998, "one", done=False)
        backlog.enter(1_000_000, 1, "one")

    asyncio.run(check())


def accepted(backlog: Backlog, caller: str) -> int:
    """How much work of a caller finds room, ten at a time."""
    count = 0
    while count < 100:
        try:
            backlog.enter(10, 60, caller)
        except OverloadedError:
            break
        count += 1
    return 10 * count


def test_a_caller_that_is_alone_fills_it_and_one_of_several_leaves_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        backlog = Backlog(longest_wait_s=1.0)
        backlog.rate = 300
        assert accepted(backlog, "many") == 300
        assert accepted(backlog, "few") == 0
        backlog.leave(300, "many", done=False)
        # From now on somebody else is known to come.
        assert accepted(backlog, "many") == 150
        assert not backlog.is_full(60, "few")
        assert backlog.is_full(60, "many")
        assert accepted(backlog, "few") == 80
        backlog.leave(80, "few", done=False)
        monkeypatch.setattr(gateway.load_control.backlog, "RECENT_S", 0.0)
        assert accepted(backlog, "many") == 150

    asyncio.run(check())
