"""Rate limit in texts per caller; a caller is an API key, or an address without a key."""

import time

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.types import Scope

from common.clock import WallClock
from gateway.http.callers import caller_of
from gateway.http.problems import CallerLimitError


class CallerLimits:
    """Counts the texts of each caller. Create one per gateway."""

    def __init__(self, limit: str) -> None:
        """Limit each caller to `limit` texts, such as `100/second`."""
        self._limit = parse(limit)
        self._text = f"{self._limit.amount} texts per {self._limit.multiples} {self._limit.GRANULARITY.name}"
        self._storage = MemoryStorage()
        self._counts = SlidingWindowCounterRateLimiter(self._storage)
        self._clock = WallClock()

    def count(self, scope: Scope, texts: int) -> None:
        """Count a request's texts for its caller, at most the whole limit: otherwise a larger request could never pass.

        Raises:
            CallerLimitError: the caller exceeds its limit; nothing was counted.
        """
        if self._clock.step_s():
            # The counts would end by the clock before; set back by an hour, it would shut callers out for an hour.
            self._storage.reset()
        caller = caller_of(scope)
        if texts and not self._counts.hit(self._limit, caller, cost=min(texts, self._limit.amount)):
            reset_at = self._counts.get_window_stats(self._limit, caller).reset_time
            detail = f"The limit per caller is {self._text}. Retry after the seconds in Retry-After."
            raise CallerLimitError(detail, retry_after_s=reset_at - time.time())
