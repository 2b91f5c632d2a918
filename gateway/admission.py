"""The innermost layer: refuses what cannot be answered before it is read, and knows what is under way."""

import asyncio
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.backlog import Backlog
from gateway.caller_limits import CallerLimits
from gateway.deadlines import time_allowed_s
from gateway.problems import EndingError, InvalidFieldsError, OverloadedError, ProblemError

READY_PATH = "/health/ready"
NEVER_REFUSED = frozenset({"/health/live", READY_PATH, "/metrics"})
"""But for readiness, which is at an end with the service."""
MOST_REQUESTS = 4_096
"""Requests under way, whatever they are for, and those whose body is still being sent among them; so that they can
only take so much memory and so many descriptors."""


class Route(NamedTuple):
    """A route whose work is bounded."""

    backlog: Backlog
    longest_s: float
    """Its requests' deadline."""
    is_known: Callable[[bytes], bool] | None = None
    """Whether a request with this body costs no work, so that it is answered all the same."""


class UnderWay:
    """The requests that were accepted and are not answered."""

    def __init__(self) -> None:
        """There are none."""
        self.count = 0
        self.ending = False
        """Whether no more are accepted."""
        self._none_left = asyncio.Event()

    async def end(self) -> None:
        """Accept no more, and wait until those that were are answered."""
        self.ending = True
        while self.count:
            self._none_left.clear()
            await self._none_left.wait()

    def leave(self) -> None:
        """One was answered."""
        self.count -= 1
        if not self.count:
            self._none_left.set()


class Admission:
    """Pure ASGI. Health and metrics always pass."""

    def __init__(
        self, app: ASGIApp, under_way: UnderWay, routes: Mapping[str, Route], limits: CallerLimits | None
    ) -> None:
        """Call `app` for what is accepted; `routes` are those whose work is bounded, by path."""
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
            problem = EndingError("The service is ending; ask again, and another or the next one answers.")
            await problem.response()(scope, receive, send)
            return
        # Before it is admitted, for that may have to read its body.
        self._under_way.count += 1
        try:
            await self._pass_on(scope, receive, send)
        finally:
            self._under_way.leave()

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            receive = await self._admit(scope, receive)
        except OverloadedError as problem:
            for message in _rendered(math.ceil(problem.retry_after_s or 1)):
                await send({**message})
        except ProblemError as problem:
            await problem.response()(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive) -> Receive:
        """Raise the problem that a request is refused with; else return what it is to be read by."""
        if self._under_way.count > MOST_REQUESTS:
            raise OverloadedError(1.0)
        if self._limits is not None:
            self._limits.count(scope, 1)
        route = self._routes.get(scope["path"])
        if route is None or not route.backlog.work:
            return receive
        try:
            time_left_s = time_allowed_s(scope["headers"], route.longest_s)
        except InvalidFieldsError:
            return receive  # The route answers with it.
        if not route.backlog.is_full(time_left_s):
            return receive
        if route.is_known is not None:
            message = await receive()
            if not message.get("more_body") and route.is_known(message.get("body", b"")):
                return _once_more(message, receive)
        raise OverloadedError(route.backlog.wait_s)


def _once_more(read: Message, receive: Receive) -> Receive:
    """Give what was read already, and then what comes after it."""
    waiting = [read]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


@lru_cache(maxsize=64)
def _rendered(retry_after_s: int) -> list[Message]:
    """The answer to those who are refused, for there are many when it must cost little."""
    response = OverloadedError(retry_after_s).response()
    return [
        {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers},
        {"type": "http.response.body", "body": response.body},
    ]
