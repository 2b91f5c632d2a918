"""A periodic task outlives what it raises, and tells of it."""

import asyncio
import logging
import threading
from collections.abc import Callable

import pytest

from common import periodic
from common.periodic import FAILURES_SHOWN, PeriodicTask, failing_tasks, run_periodically, run_until

NAME = "a task of a test"


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(periodic, "_FIRST_PAUSE_S", 0.001)


class Work:
    """Raises what it is given, run by run; none is a success. After the last run, `done` is set."""

    def __init__(self, *outcomes: BaseException | None) -> None:
        self._outcomes = list(outcomes)
        self.done = threading.Event()
        self.shown: list[list[str]] = []
        """What the health check lists, before each run."""

    def __call__(self) -> None:
        self.shown.append([failure.error for failure in failing_tasks() if failure.task == NAME])
        if not self._outcomes:
            self.done.set()
            return
        outcome = self._outcomes.pop(0)
        if outcome is not None:
            raise outcome


def run_in_loop(work: Work) -> None:
    async def main() -> None:
        async def step() -> None:
            work()

        task = asyncio.create_task(run_periodically(NAME, step, 0.001, longest_pause_s=0.01))
        assert await asyncio.to_thread(work.done.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def run_in_thread(work: Work) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=run_until, args=(stop, NAME, work, 0.001), kwargs={"longest_pause_s": 0.01})
    thread.start()
    assert work.done.wait(30)
    stop.set()
    thread.join(30)
    assert not thread.is_alive()


both = pytest.mark.parametrize("run", [run_in_loop, run_in_thread])


def counted() -> float:
    return periodic.failures.labels(NAME)._value.get()  # type: ignore[no-any-return]


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.message) for record in caplog.records if record.name == "common.periodic"]


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


@both
def test_a_task_that_raises_anything_is_run_again_counted_and_logged_once(
    run: Callable[[Work], None], logged: pytest.LogCaptureFixture
) -> None:
    before = counted()
    work = Work(None, *(RuntimeError(f"number {number}\nwith a secret") for number in range(5)))
    run(work)
    assert counted() - before == 5
    (failed, works_again) = lines(logged)
    assert failed == ("ERROR", f"The task '{NAME}' failed and is tried again: RuntimeError: number 0")
    assert works_again == ("INFO", f"The task '{NAME}' works again after 5 failures.")


@both
def test_another_failure_has_a_line_of_its_own(run: Callable[[Work], None], logged: pytest.LogCaptureFixture) -> None:
    run(Work(OSError("one"), OSError("two"), ValueError("three\nSELECT a secret"), OSError("four"), None, OSError()))
    assert [message.partition("again: ")[2] or message.rpartition("' ")[2] for _, message in lines(logged)] == [
        "OSError: one",
        "ValueError: three",
        "OSError: four",
        "works again after 4 failures.",
        "OSError",
        "works again after 1 failures.",
    ]


@both
def test_only_what_keeps_failing_is_shown_and_until_it_works(run: Callable[[Work], None]) -> None:
    assert FAILURES_SHOWN == 2
    work = Work(OSError("one"), OSError("two\nmore"), OSError("three"), None)
    run(work)
    assert work.shown[:5] == [[], [], ["OSError: two"], ["OSError: three"], []]


@both
def test_what_has_ended_is_not_shown(run: Callable[[Work], None]) -> None:
    class AlwaysFailing(Work):
        def __call__(self) -> None:
            if failing_tasks():
                self.done.set()
            raise OSError("always")

    run(AlwaysFailing())
    assert failing_tasks() == []


def test_pauses_grow_to_their_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(periodic, "_FIRST_PAUSE_S", 1.0)

    def pauses(interval_s: float, longest_pause_s: float) -> list[float]:
        task = PeriodicTask(NAME, interval_s, longest_pause_s)
        found = [task.pause_s]
        for _ in range(6):
            with task.attempt():
                raise OSError
            found.append(task.pause_s)
        with task.attempt():
            pass
        task.close()
        return [*found, task.pause_s]

    assert pauses(0.5, 10) == [0.5, 1, 2, 4, 8, 10, 10, 0.5]
    assert pauses(3, 3) == [3] * 8
    assert pauses(20, 10) == [20] * 8


def test_a_task_that_somebody_else_calls_is_left_out_during_its_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr("common.periodic.time.monotonic", lambda: clock)
    monkeypatch.setattr(periodic, "_FIRST_PAUSE_S", 1.0)
    work = Work(OSError(), OSError())
    task = PeriodicTask(NAME)
    for seconds, runs in ((0.0, 1), (0.5, 1), (1.0, 2), (2.5, 2), (3.0, 3), (3.0, 4)):
        clock = 100.0 + seconds
        task.run(work)
        assert len(work.shown) == runs
    task.close()


def test_cancelling_is_prompt_during_the_work_and_during_a_pause() -> None:
    async def main() -> None:
        async def hang() -> None:
            await asyncio.Event().wait()

        async def fail() -> None:
            raise OSError

        for work in (hang, fail):
            task = asyncio.create_task(run_periodically(NAME, work, 3_600))
            await asyncio.sleep(0.01)
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=30)
            assert done
            assert task.cancelled()

    asyncio.run(main())
