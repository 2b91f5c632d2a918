"""Statistics of this process's calls to each model version: failures, and the time of a call without concurrent ones.

Clients influence both by what and how much they send, so the figures raise suspicion but never roll back a version.
"""

import statistics
import threading
import time
from collections import deque
from dataclasses import dataclass

KEPT_CALLS = 2_000
KEPT_TIMES = 500
KEPT_VERSIONS = 4


@dataclass(frozen=True)
class VersionStatistics:
    """Statistics of a version's most recent calls; older calls are not kept."""

    answered: int
    failed: int
    """Number of calls in which the model itself failed."""
    lone_calls: int
    """Number of timed calls for one text during which no other call was in progress."""
    lone_ms: float
    """Median time of the lone calls. Unlike the mean time of all calls, it does not depend on concurrent load."""


class CallStatistics:
    """Keeps the most recent calls of each version; written by the gateway, read in other threads."""

    def __init__(self) -> None:
        """Start without any calls."""
        self._lock = threading.Lock()
        self._failures: dict[int, deque[tuple[float, bool]]] = {}
        """For each version: the end time of each call, and whether the model failed."""
        self._lone_ms: dict[int, deque[tuple[float, float]]] = {}

    def answered(self, version: int, lone_ms: float | None) -> None:
        """Record a successful call; `lone_ms` is its duration if it had one text and no concurrent calls."""
        now = time.monotonic()
        with self._lock:
            self._failures_of(version).append((now, False))
            if lone_ms is not None:
                self._lone_ms[version].append((now, lone_ms))

    def failed(self, version: int) -> None:
        """Record a call in which the model failed while `version` was deployed."""
        with self._lock:
            self._failures_of(version).append((time.monotonic(), True))

    def of(self, version: int, since: float = float("-inf")) -> VersionStatistics:
        """Return the statistics of a version's calls that ended after `since`, a time of the monotonic clock."""
        with self._lock:
            failures = [failed for at, failed in self._failures.get(version, ()) if at > since]
            times = [ms for at, ms in self._lone_ms.get(version, ()) if at > since]
        failed = sum(failures)
        return VersionStatistics(len(failures) - failed, failed, len(times), statistics.median(times) if times else 0.0)

    def _failures_of(self, version: int) -> deque[tuple[float, bool]]:
        if version not in self._failures:
            self._failures[version] = deque(maxlen=KEPT_CALLS)
            self._lone_ms[version] = deque(maxlen=KEPT_TIMES)
            while len(self._failures) > KEPT_VERSIONS:
                oldest = next(iter(self._failures))
                del self._failures[oldest], self._lone_ms[oldest]
        return self._failures[version]
