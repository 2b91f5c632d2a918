"""The dependencies of the routes and console pages of one gateway."""

from collections import Counter
from dataclasses import dataclass, field

from fastapi import Request
from limits.strategies import SlidingWindowCounterRateLimiter

from common.settings import Settings
from gateway.auth.sessions import Sessions
from gateway.auth.wrong_keys import WrongKeys
from gateway.http.rate_counts import RateCounts
from gateway.inference.predictor import Predictor
from gateway.load_control.admission import UnderWay
from gateway.load_control.rate_limit import KEYLESS_FEEDBACK_KIB, CallerLimits
from gateway.monitoring.database_work import DatabaseWork
from gateway.monitoring.metrics import Metrics
from gateway.monitoring.recent_rates import Pulse
from gateway.monitoring.scrape import Scrape
from serving.host.open_control import OpenControl
from storage.lazy_database import Storage


@dataclass(frozen=True)
class AppContext:
    """The objects that routes use. `gateway/main.py` creates one context when the gateway starts."""

    settings: Settings
    storage: Storage
    predictor: Predictor
    limits: CallerLimits | None
    """None if callers are not limited."""
    metrics: Metrics
    scrape: Scrape
    """The builder of the response of `/metrics`."""
    open_control: OpenControl
    """The external Tritons on which anyone can load models."""
    sessions: Sessions
    """The console's sessions."""
    wrong_keys: WrongKeys
    pulse: Pulse
    """Request rates and latencies of the last minutes."""
    under_way: UnderWay
    """The requests in progress."""
    work: DatabaseWork = field(default_factory=DatabaseWork)
    """The threads for database work."""
    keyless_feedback: RateCounts = field(
        default_factory=lambda: RateCounts(KEYLESS_FEEDBACK_KIB, SlidingWindowCounterRateLimiter)
    )
    """What callers without a key have used of `KEYLESS_FEEDBACK_KIB`."""
    listeners: Counter[str] = field(default_factory=Counter)
    """Number of open progress streams of each caller."""

    def count_texts(self, request: Request, texts: int) -> None:
        """Count the texts of a request for its caller, minus the one that was counted when the request arrived.

        Raises:
            CallerLimitError: the caller is over its limit.
        """
        if self.limits is not None:
            self.limits.count(request.scope, texts - 1)


def get_context(request: Request) -> AppContext:
    """Return the context of the gateway that handles the request."""
    context: AppContext = request.app.context
    return context
