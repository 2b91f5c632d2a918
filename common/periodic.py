"""Periodic work that no exception ends.

A task that raises is logged once, counted for `/metrics`, and run again after a pause that doubles with each failure.
`failing_tasks` lists the tasks that fail again and again, for health checks.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client import Counter

LONGEST_PAUSE_S = 30.0
FAILURES_SHOWN = 2
"""Failures in a row after which `failing_tasks` lists a task. A single one may be a short loss of the database."""
_FIRST_PAUSE_S = 1.0

failures = Counter(
    "sentiment_periodic_task_failures",
    "Runs of a periodic task of this process that raised an exception.",
    ("task",),
    registry=None,
)

log = logging.getLogger(__name__)

_tasks: set["PeriodicTask"] = set()
"""All running tasks of this process."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The failures in a row of a task."""

    task: str
    since: datetime
    in_a_row: int
    error_type: str
    """The class of the last exception."""
    error: str
    """The class and the first line of the last exception's message, which may name hosts and paths."""


class PeriodicTask:
    """A task and its failures."""

    def __init__(self, name: str, interval_s: float = 0.0, longest_pause_s: float = LONGEST_PAUSE_S) -> None:
        """Register a task that runs every `interval_s` seconds, and after failures waits up to `longest_pause_s`."""
        self._name = name
        self._interval_s = interval_s
        self._longest_pause_s = longest_pause_s
        self._resumes_at = float("-inf")
        self.failure: Failure | None = None
        """None while the last run succeeded."""
        failures.labels(name)  # so that /metrics contains the task before its first failure
        _tasks.add(self)

    def close(self) -> None:
        """Unregister the task; its failure counter stays."""
        _tasks.discard(self)

    @property
    def pause_s(self) -> float:
        """Seconds until the next run."""
        if self.failure is None:
            return self._interval_s
        doubled = max(self._interval_s, _FIRST_PAUSE_S) * 2.0 ** min(self.failure.in_a_row - 1, 16)
        return max(self._interval_s, min(self._longest_pause_s, doubled))

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Treat the block as one run of the task; record an exception and suppress it."""
        try:
            yield
        except Exception as error:
            self._fail(error)
        else:
            if self.failure is not None:
                log.info("The task '%s' works again after %d failures.", self._name, self.failure.in_a_row)
            self.failure = None

    def run(self, work: Callable[[], object]) -> None:
        """Call `work` as one run of the task, unless the pause after a failure is not over yet."""
        if time.monotonic() >= self._resumes_at:
            with self.attempt():
                work()

    def _fail(self, error: Exception) -> None:
        failures.labels(self._name).inc()
        before, error_type = self.failure, type(error).__name__
        # Only the first line: the others in SQLAlchemy's messages contain statements and their parameters.
        message = f"{error_type}: {str(error).partition(chr(10))[0]}".removesuffix(": ")
        since = before.since if before else datetime.now(UTC)
        self.failure = Failure(self._name, since, before.in_a_row + 1 if before else 1, error_type, message)
        self._resumes_at = time.monotonic() + self.pause_s
        if before is None or before.error_type != error_type:
            log.error("The task '%s' failed and is tried again: %s", self._name, message)
        log.debug("The task '%s' failed.", self._name, exc_info=error)


async def run_periodically(
    name: str,
    work: Callable[[], Awaitable[object]],
    interval_s: float = 0.0,
    *,
    delay_s: float = 0.0,
    longest_pause_s: float = LONGEST_PAUSE_S,
) -> None:
    """Await `work()` every `interval_s` seconds, first after `delay_s`, until cancelled.

    With an interval of 0, `work` itself waits until there is something to do.
    """
    task = PeriodicTask(name, interval_s, longest_pause_s)
    try:
        await asyncio.sleep(delay_s)
        while True:
            with task.attempt():
                await work()
            await asyncio.sleep(task.pause_s)
    finally:
        task.close()


async def try_once(work: Callable[[], Awaitable[object]], within_s: float, failed: str) -> None:
    """Await `work()` for at most `within_s` seconds; if it fails or is too slow, log `failed` and the reason."""
    try:
        await asyncio.wait_for(work(), within_s)
    except TimeoutError:
        log.warning("%s: it took over %.0f s", failed, within_s)
    except Exception as error:
        log.warning("%s: %s", failed, str(error).partition("\n")[0])


def run_until(
    stop: threading.Event,
    name: str,
    work: Callable[[], object],
    interval_s: float,
    *,
    longest_pause_s: float = LONGEST_PAUSE_S,
) -> None:
    """Call `work()` every `interval_s` seconds in this thread until `stop` is set."""
    task = PeriodicTask(name, interval_s, longest_pause_s)
    try:
        while not stop.is_set():
            with task.attempt():
                work()
            stop.wait(task.pause_s)
    finally:
        task.close()


def failing_tasks() -> list[Failure]:
    """Return the failures of all tasks that failed at least `FAILURES_SHOWN` times in a row, sorted by task name."""
    found = [task.failure for task in list(_tasks)]
    shown = [failure for failure in found if failure is not None and failure.in_a_row >= FAILURES_SHOWN]
    return sorted(shown, key=lambda failure: failure.task)
