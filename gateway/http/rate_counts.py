"""Counts for a rate limit, in memory, that a step of the wall clock cannot distort."""

import time

from limits import RateLimitItem
from limits.storage import MemoryStorage
from limits.strategies import RateLimiter

from common.clock import WallClock


class RateCounts:
    """Counts what each client has used of a limit."""

    def __init__(self, limit: RateLimitItem, strategy: type[RateLimiter]) -> None:
        """Count with a `strategy` of the package limits, which says how the windows of `limit` move."""
        self._limit = limit
        self._storage = MemoryStorage()
        self._counts = strategy(self._storage)
        self._clock = WallClock()

    def hit(self, client: str, cost: int = 1) -> float | None:
        """Count `cost` for a client; return the seconds until its window ends if that exceeds the limit, else None."""
        if self._clock.step_s():
            # Windows that began before the step would end at the wrong time.
            self._storage.reset()
        if self._counts.hit(self._limit, client, cost=cost):
            return None
        return self._counts.get_window_stats(self._limit, client).reset_time - time.time()
