"""What one caller may ask in a time: so many texts, by key, or by address where there is no key."""

import time

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.types import Scope

from gateway.problems import CallerLimitError
from storage.api_keys import ANONYMOUS_NAME


class CallerLimits:
    """Counts what each caller asks; make one a gateway."""

    def __init__(self, limit: str) -> None:
        """Allow each caller `limit`, such as `100/second`."""
        self._limit = parse(limit)
        self._text = f"{self._limit.amount} texts per {self._limit.multiples} {self._limit.GRANULARITY.name}"
        self._counts = SlidingWindowCounterRateLimiter(MemoryStorage())

    def count(self, scope: Scope, texts: int) -> None:
        """Count texts of a request's caller. More than the whole limit count as that, or they could never be asked.

        Raises:
            CallerLimitError: the caller is over its limit; nothing was counted.
        """
        caller = _caller(scope)
        if texts and not self._counts.hit(self._limit, caller, cost=min(texts, self._limit.amount)):
            reset_at = self._counts.get_window_stats(self._limit, caller).reset_time
            raise CallerLimitError(self._text, reset_at - time.time())


def _caller(scope: Scope) -> str:
    name = scope.get("state", {}).get("caller", ANONYMOUS_NAME)
    if name != ANONYMOUS_NAME:
        return f"key {name}"
    return f"address {scope['client'][0] if scope['client'] else ''}"
