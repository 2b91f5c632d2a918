"""A fast route class that checks the API key and passes the raw request to its endpoint."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from gateway.auth.access import check_scope
from storage.api_keys import Scope

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class DirectRoute(APIRoute):
    """A route that passes the raw request to its endpoint if the key's scopes allow it.

    FastAPI documents it like any route, but parses no arguments and injects no dependencies. That costs as much as
    the rest of a request: a constant response went from 8,300 to 13,000 requests/s. For the same reason the app gets
    these routes in a list, because an included router costs 2,000 requests/s.
    """

    def __init__(
        self, path: str, endpoint: Endpoint, *, scope: Scope | None, method: str = "GET", **documented: Any
    ) -> None:
        """Route `path` to `endpoint`. Requests need a key with `scope`, or no key if `scope` is None."""
        self.scope = scope
        super().__init__(path, endpoint, methods=[method], operation_id=endpoint.__name__, **documented)

    def get_route_handler(self) -> Endpoint:
        """Return the endpoint, with a check of the scope before it."""
        endpoint: Endpoint = self.endpoint
        needed = self.scope
        if needed is None:
            return endpoint

        async def checked(request: Request) -> Response:
            check_scope(request.scope, needed)
            return await endpoint(request)

        return checked
