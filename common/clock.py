"""Notices that the wall clock was set: by hand, by a time server, or because the machine slept."""

import time

_LARGEST_DRIFT_S = 5.0
"""A difference up to this is drift, not a step."""


class WallClock:
    """Compares the wall clock with the monotonic clock. Durations are measured with the monotonic clock alone."""

    def __init__(self) -> None:
        """Begin to compare."""
        self._ahead_s = _ahead_s()

    def step_s(self) -> float:
        """Return by how many seconds the wall clock was set since the last call; 0 if it was not."""
        before, self._ahead_s = self._ahead_s, _ahead_s()
        step_s = self._ahead_s - before
        return step_s if abs(step_s) > _LARGEST_DRIFT_S else 0.0


class Elapsed:
    """Measures how long ago something began whose time is recorded, whatever the wall clock does meanwhile."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self._what: object = None
        self._began = 0.0

    def seconds(self, what: object, by_wall_clock_s: float) -> float:
        """Return the seconds since `what` began. Only the first call for it relies on those by the wall clock."""
        if what != self._what:
            self._what, self._began = what, time.monotonic() - max(0.0, by_wall_clock_s)
        return time.monotonic() - self._began


def _ahead_s() -> float:
    return time.time() - time.monotonic()
