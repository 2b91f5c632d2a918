"""Limits by time, when the clock is set."""

import asyncio
import time
from pathlib import Path

import pytest
from starlette.types import Scope

from common.settings import Settings
from gateway.auth.wrong_keys import MOST_A_MINUTE, WrongKeys
from gateway.http.problems import CallerLimitError, WrongKeysError
from gateway.load_control.rate_limit import CallerLimits
from storage.lazy_database import Storage

SCOPE: Scope = {"type": "http", "client": ("10.1.2.3", 5_000), "headers": [], "state": {}}


def set_clock(monkeypatch: pytest.MonkeyPatch, step_s: float) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + step_s)


@pytest.mark.parametrize("step_s", [-3_600, 3_600])
def test_a_clock_that_is_set_shuts_no_caller_out(step_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = CallerLimits("10/hour")
    limits.count(SCOPE, 10)
    with pytest.raises(CallerLimitError):
        limits.count(SCOPE, 1)
    set_clock(monkeypatch, step_s)
    limits.count(SCOPE, 10)
    with pytest.raises(CallerLimitError) as refused:
        limits.count(SCOPE, 1)
    assert 0 < float(refused.value.retry_after_s or 0) <= 3_600


def test_a_clock_that_is_set_back_does_not_lengthen_the_minute_of_wrong_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(Settings(state_dir=tmp_path))

    async def scenario() -> None:
        wrong_keys = WrongKeys(storage)
        for _ in range(MOST_A_MINUTE):
            wrong_keys.count(SCOPE)
        set_clock(monkeypatch, -3_600)
        for _ in range(MOST_A_MINUTE):
            wrong_keys.count(SCOPE)
        with pytest.raises(WrongKeysError) as refused:
            wrong_keys.count(SCOPE)
        assert float(refused.value.retry_after_s or 0) <= 60
        await wrong_keys._telling

    asyncio.run(scenario())
    storage.close()
