"""How each version answers the calls of this process: what fails, and how long a call takes that is alone."""

import statistics
import threading
from collections import deque
from dataclasses import dataclass

KEPT_TIMES = 500
KEPT_VERSIONS = 4


@dataclass(frozen=True)
class VersionStatistics:
    """What is known of a version's calls."""

    answered: int
    failed: int
    lone_calls: int
    """Calls for one text while no other was under way, of which the times are known; at most `KEPT_TIMES`."""
    lone_ms: float
    """Their median: unlike the mean over all, it does not change with the load or with how texts come together."""


class CallStatistics:
    """Counts calls by version; written by the gateway, read by whoever watches it, in other threads."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._lock = threading.Lock()
        self._counts: dict[int, list[int]] = {}
        self._lone_ms: dict[int, deque[float]] = {}

    def answered(self, version: int, lone_ms: float | None) -> None:
        """A call was answered; `lone_ms` is how long it took, if it was for one text and alone."""
        with self._lock:
            self._counts_of(version)[0] += 1
            if lone_ms is not None:
                self._lone_ms[version].append(lone_ms)

    def failed(self, version: int) -> None:
        """A call was not answered while `version` was what answers."""
        with self._lock:
            self._counts_of(version)[1] += 1

    def of(self, version: int) -> VersionStatistics:
        """What is known of a version."""
        with self._lock:
            answered, failed = self._counts.get(version, (0, 0))
            times = list(self._lone_ms.get(version, ()))
        return VersionStatistics(answered, failed, len(times), statistics.median(times) if times else 0.0)

    def _counts_of(self, version: int) -> list[int]:
        if version not in self._counts:
            self._counts[version] = [0, 0]
            self._lone_ms[version] = deque(maxlen=KEPT_TIMES)
            while len(self._counts) > KEPT_VERSIONS:
                oldest = next(iter(self._counts))
                del self._counts[oldest], self._lone_ms[oldest]
        return self._counts[version]
