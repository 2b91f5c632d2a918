"""The outermost layer: gives each request an id, counts and times it, and logs slow and failed ones."""

import logging
import re
import time
from collections.abc import Callable, Sequence

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common import tracing
from common.request_context import current_request, request_id
from gateway.monitoring.metrics import Metrics

REQUEST_ID_HEADER = "X-Request-Id"
SLOW_S = 2.0
"""Duration from which a request is logged. Live requests only take that long under overload."""
MOST_LINES = 100
"""Maximum lines for slow and failed requests in a period of `common.log_flood`, to protect the disk in an outage."""
CLIENT_LEFT = 499
"""Status for requests whose client disconnected before the response began, as in nginx."""
OTHER_ROUTE = "other"
OTHER_METHOD = "_OTHER"
UNTRACED = {"/health/live", "/health/ready", "/metrics"}
"""Paths without traces, because monitoring systems request them every few seconds."""
PROGRESS_PATH = "/console/progress"
"""A stream that lasts as long as the page is open, so its duration is not logged as slow."""
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
_ID_HEADER = REQUEST_ID_HEADER.lower().encode()

log = logging.getLogger(__name__)


class Observing:
    """Pure ASGI middleware around all other layers, so that it also sees refusals and failures."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute], metrics: Metrics) -> None:
        """Wrap `app` with the routes `routes`; all other paths are counted under one name."""
        self._app = app
        self._metrics = metrics
        self._active = 0
        metrics.active_requests.set_function(lambda: self._active)
        self._routes = Routes(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = traceparent = b""
        for name, value in scope["headers"]:
            if name == _ID_HEADER:
                given = value
            elif name == b"traceparent":
                traceparent = value
        id_ = request_id(given)
        current_request.set(id_)
        header = (_ID_HEADER, id_.encode())
        status = CLIENT_LEFT

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], header]
            await send(message)

        started = time.perf_counter()
        self._active += 1
        try:
            if tracing.is_on() and scope["path"] not in UNTRACED:
                await self._trace(scope, receive, send_with_id, traceparent.decode("latin-1"), lambda: status)
            else:
                await self._app(scope, receive, send_with_id)
        finally:
            self._active -= 1
            self._end(scope, status, time.perf_counter() - started)

    async def _trace(
        self, scope: Scope, receive: Receive, send: Send, traceparent: str, status: Callable[[], int]
    ) -> None:
        """Handle a request within a span, whose parent is the client's span if it sent one."""
        method, route = scope["method"], self._routes.template(scope["path"])
        with tracing.span(
            f"{method if method in _METHODS else OTHER_METHOD} {route}",
            kind="server",
            parent=tracing.sent(traceparent),
            attributes={
                "http.request.method": method,
                "http.route": route,
                "sentiment.request.id": current_request.get(),
            },
        ) as tell:
            try:
                await self._app(scope, receive, send)
            finally:
                tell("http.response.status_code", status())

    def _end(self, scope: Scope, status: int, seconds: float) -> None:
        method, route = scope["method"], self._routes.template(scope["path"])
        self._metrics.of_requests(method if method in _METHODS else OTHER_METHOD, route, status).observe(seconds)
        is_slow = seconds >= SLOW_S and route != PROGRESS_PATH
        level = logging.WARNING if status >= 500 else logging.INFO if is_slow else logging.DEBUG
        if not log.isEnabledFor(level):
            return
        duration_ms, path = 1_000 * seconds, scope["path"][:200]
        figures = {"method": method[:10], "path": path, "status": status, "duration_ms": round(duration_ms, 1)}
        # The path comes from a stranger; it is escaped as in Python source, so that it cannot add log lines.
        log.log(
            level,
            "%s %s: %d after %.1f ms",
            method[:10],
            ascii(path)[1:-1],
            status,
            duration_ms,
            extra={"figures": figures, "most_lines": MOST_LINES},
        )


class Routes:
    """Maps paths to route templates, so that metrics have few different labels."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        """Prepare the lookup for `routes`."""
        known = [route for route in routes if isinstance(route, (APIRoute, Route))]
        self._plain = {route.path: route.path for route in known if "{" not in route.path}
        self._patterns: list[tuple[re.Pattern[str], str]] = [
            (route.path_regex, route.path) for route in known if "{" in route.path
        ]

    def template(self, path: str) -> str:
        """Return the route's path as declared, such as `/jobs/{job}`, or `OTHER_ROUTE` if no route matches."""
        plain = self._plain.get(path)
        if plain is not None:
            return plain
        return next((template for pattern, template in self._patterns if pattern.match(path)), OTHER_ROUTE)
