"""The innermost layer: refuses requests that cannot be handled, before they are read, and counts those under way."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.callers import caller_of, current_caller
from gateway.http.connections import MOST_REQUESTS
from gateway.http.problems import EndingError, InvalidFieldsError, OverloadedError, ProblemError
from gateway.load_control.backlog import Backlog
from gateway.load_control.deadlines import time_allowed_s
from gateway.load_control.rate_limit import CallerLimits

READY_PATH = "/health/ready"
NEVER_REFUSED = frozenset({"/health/live", READY_PATH, "/metrics"})
"""Paths that are never refused, except readiness during shutdown."""
MOST_OF_ONE_CALLER = MOST_REQUESTS // 2
"""Maximum concurrent requests of one caller, so that nobody takes all places."""
MOST_OF_STRANGERS = 1_024
"""Maximum concurrent requests without a required key, counted separately. It exceeds
`gateway.http.connections.MOST_STRANGERS`: unfinished requests are closed first, so they never keep a new one out."""


class Route(NamedTuple):
    """A route with limited work."""

    backlog: Backlog
    longest_s: float
    """Maximum duration of its requests, in seconds."""
    is_known: Callable[[bytes], bool] | None = None
    """Function that returns True if a request with this body costs no work; the request then passes a full backlog."""


class UnderWay:
    """The accepted requests that have no response yet."""

    def __init__(self) -> None:
        """Start with no requests."""
        self.count = 0
        self.by_caller: Counter[str] = Counter()
        self.strangers = 0
        """Requests without a required key: they sign in, load scripts, or are refused."""
        self.ending = False
        """True during shutdown: no more requests are accepted."""
        self._none_left = asyncio.Event()

    async def end(self) -> None:
        """Accept no more requests, and wait until the accepted ones have responses."""
        self.ending = True
        while self.count:
            self._none_left.clear()
            await self._none_left.wait()

    def enter(self, caller: str, is_stranger: bool = False) -> None:
        """Count a request of a caller; a stranger came without a required key."""
        self.count += 1
        self.strangers += is_stranger
        self.by_caller[caller] += 1

    def leave(self, caller: str, is_stranger: bool = False) -> None:
        """Count a request of a caller as finished."""
        self.count -= 1
        self.strangers -= is_stranger
        self.by_caller[caller] -= 1
        if not self.by_caller[caller]:
            del self.by_caller[caller]
        if not self.count:
            self._none_left.set()


class Admission:
    """Pure ASGI middleware that admits or refuses requests. Health and metrics pass, as `NEVER_REFUSED` says."""

    def __init__(
        self, app: ASGIApp, under_way: UnderWay, routes: Mapping[str, Route], limits: CallerLimits | None
    ) -> None:
        """Call `app` for accepted requests; `routes` are the routes with limited work, by path."""
        self._app = app
        self._under_way = under_way
        self._routes = routes
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        path = scope.get("path")
        if path is None or (path in NEVER_REFUSED and not (self._under_way.ending and path == READY_PATH)):
            await self._app(scope, receive, send)
            return
        if self._under_way.ending:
            problem = EndingError("The service is shutting down; try again to reach another instance.")
            await problem.response()(scope, receive, send)
            return
        # Counted before admission, which may have to read the body.
        caller = caller_of(scope)
        current_caller.set(caller)
        is_stranger = not scope["state"]["scopes"]
        self._under_way.enter(caller, is_stranger)
        try:
            receive = await self._admit(scope, receive)
        except OverloadedError as problem:
            for message in _rendered(math.ceil(problem.retry_after_s or 1)):
                await send({**message})
        except ProblemError as problem:
            await problem.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)
        finally:
            self._under_way.leave(caller, is_stranger)

    async def _admit(self, scope: Scope, receive: Receive) -> Receive:
        """Return the function to read the request with, or raise the problem that refuses it."""
        caller = current_caller.get()
        under_way = self._under_way
        if not scope["state"]["scopes"]:
            if under_way.strangers > MOST_OF_STRANGERS:
                raise OverloadedError(1.0)
        elif under_way.by_caller[caller] > MOST_OF_ONE_CALLER or under_way.count - under_way.strangers > MOST_REQUESTS:
            raise OverloadedError(1.0)
        if self._limits is not None:
            self._limits.count(scope, 1)
        route = self._routes.get(scope["path"])
        if route is None or not route.backlog.work:
            return receive
        try:
            time_left_s = time_allowed_s(scope["headers"], route.longest_s)
        except InvalidFieldsError:
            return receive  # The route reports this error.
        if not route.backlog.is_full(time_left_s, caller):
            return receive
        if route.is_known is not None:
            message = await receive()
            if not message.get("more_body") and route.is_known(message.get("body", b"")):
                return _once_more(message, receive)
        raise OverloadedError(route.backlog.wait_s)


def _once_more(read: Message, receive: Receive) -> Receive:
    """Return a receive function that repeats the message `read`, then continues with `receive`."""
    waiting = [read]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


@lru_cache(maxsize=64)
def _rendered(retry_after_s: int) -> list[Message]:
    """Return the overload response, cached because refusals are frequent exactly when they must be cheap."""
    response = OverloadedError(retry_after_s).response()
    return [
        {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers},
        {"type": "http.response.body", "body": response.body},
    ]
