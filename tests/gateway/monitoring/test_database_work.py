"""A database that hangs holds up nobody for ever, and a slow one only so many."""

import asyncio
import threading
import time

import pytest

from gateway.http.problems import StorageUnavailableError
from gateway.monitoring import database_work
from gateway.monitoring.database_work import AT_ONCE, DatabaseWork


def test_work_is_done_and_its_error_is_told() -> None:
    async def scenario() -> None:
        work = DatabaseWork()
        assert await work.run(lambda: 5) == 5
        with pytest.raises(ValueError, match="wrong"):
            await work.run(lambda: int("wrong"))
        # Each turn was given back.
        assert await asyncio.gather(*(work.run(lambda: 1) for _ in range(3 * AT_ONCE))) == [1] * 3 * AT_ONCE

    asyncio.run(scenario())


def test_who_waits_too_long_for_an_answer_or_a_turn_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_work, "LONGEST_WORK_S", 0.3)
    monkeypatch.setattr(database_work, "LONGEST_QUEUE_S", 0.1)
    hanging = threading.Event()

    async def scenario() -> None:
        work = DatabaseWork()
        started = time.monotonic()
        answers = await asyncio.gather(
            *(work.run(lambda: hanging.wait(20)) for _ in range(2 * AT_ONCE)), return_exceptions=True
        )
        assert time.monotonic() - started < 10
        assert [type(answer) for answer in answers] == [StorageUnavailableError] * 2 * AT_ONCE
        assert sum("nothing was stored" in str(answer) for answer in answers) == AT_ONCE
        assert sum("same Idempotency-Key" in str(answer) for answer in answers) == AT_ONCE
        # What hangs keeps its turn until it ends.
        with pytest.raises(StorageUnavailableError, match="nothing was stored"):
            await work.run(lambda: 1)
        hanging.set()
        assert await work.run(lambda: 1) == 1

    asyncio.run(scenario())
