"""Rate limit in texts per caller; a caller is an API key, or an address without a key."""

from limits import RateLimitItemPerSecond, parse
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.types import Scope

from gateway.http.callers import caller_of
from gateway.http.problems import CallerLimitError
from gateway.http.rate_counts import RateCounts

KEYLESS_FEEDBACK_KIB = RateLimitItemPerSecond(4_096, 10)
"""Feedback in KiB that is read from all callers without a key together, because large bodies delay other requests."""


class CallerLimits:
    """Counts the texts of each caller. Create one per gateway."""

    def __init__(self, limit: str) -> None:
        """Limit each caller to `limit` texts, such as `100/second`."""
        self._limit = parse(limit)
        self._text = f"{self._limit.amount} texts per {self._limit.multiples} {self._limit.GRANULARITY.name}"
        self._counts = RateCounts(self._limit, SlidingWindowCounterRateLimiter)

    def count(self, scope: Scope, texts: int) -> None:
        """Count a request's texts for its caller, at most the whole limit: otherwise a larger request could never pass.

        Raises:
            CallerLimitError: the caller exceeds its limit; nothing was counted.
        """
        if not texts:
            return
        retry_after_s = self._counts.hit(caller_of(scope), min(texts, self._limit.amount))
        if retry_after_s is not None:
            detail = f"The limit per caller is {self._text}. Retry after the seconds in Retry-After."
            raise CallerLimitError(detail, retry_after_s=retry_after_s)
