"""What is accepted, as the rate is measured."""

import asyncio
import math

import pytest

import gateway.backlog
from gateway.backlog import Backlog
from gateway.problems import ModelTimeoutError, OverloadedError


@pytest.fixture(autouse=True)
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway.backlog, "WINDOW_S", 0.01)


async def slowed() -> Backlog:
    """One that is full, and was measured at less than a hundred a second; 998 are not done."""
    backlog = Backlog(math.inf)
    backlog.enter(1_000, time_left_s=60)
    # The first window, which began with nothing to do, tells nothing.
    for _ in range(2):
        assert backlog.is_full(time_left_s=0)
        await asyncio.sleep(0.02)
        backlog.leave(1, done=True)
    assert backlog.rate < 100
    return backlog


def test_a_full_second_tells_the_rate_and_so_the_bound() -> None:
    async def check() -> None:
        backlog = await slowed()
        with pytest.raises(OverloadedError) as refused:
            backlog.enter(50, time_left_s=10)
        assert refused.value.retry_after_s == pytest.approx(998 / backlog.rate)
        with pytest.raises(ModelTimeoutError):
            backlog.enter(1_000_000, time_left_s=1)

    asyncio.run(check())


def test_a_slow_past_refuses_nothing_that_is_alone() -> None:
    async def check() -> None:
        backlog = await slowed()
        backlog.leave(998, done=False)
        backlog.enter(1_000_000, time_left_s=1)

    asyncio.run(check())
