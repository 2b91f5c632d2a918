"""What the routes share: how they are called, and where they find the predictor and the loop."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from gateway.access import check_scope
from gateway.caller_limits import CallerLimits
from gateway.database_work import DatabaseWork
from gateway.metrics import Metrics
from gateway.predictor import Predictor
from gateway.scrape import Scrape
from gateway.suggester import Suggester
from settings import Settings
from storage.api_keys import Scope
from storage.storage import Storage

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class DirectRoute(APIRoute):
    """A route that gives its endpoint the request as it is, if its key allows.

    FastAPI documents it like any other, but takes no arguments from the request and injects nothing, which costs
    as much as all the rest of a request: a constant answer went from 8,300 to 13,000 requests/s. For the same
    reason these routes are given to the app in a list, for an included router costs 2,000 more.
    """

    def __init__(self, path: str, endpoint: Endpoint, *, scope: Scope | None, **documented: Any) -> None:
        """Answer at `path` by `endpoint` what comes with a key for `scope`; without one, whatever comes."""
        self.scope = scope
        super().__init__(path, endpoint, **documented)

    def get_route_handler(self) -> Endpoint:
        """Return the endpoint itself, behind a look at what the key allows."""
        endpoint: Endpoint = self.endpoint
        needed = self.scope
        if needed is None:
            return endpoint

        async def checked(request: Request) -> Response:
            check_scope(request.scope, needed)
            return await endpoint(request)

        return checked


def set_predictor(app: FastAPI, predictor: Predictor) -> None:
    """Have the routes of `app` answer through `predictor`."""
    app.state.predictor = predictor


def get_predictor(request: Request) -> Predictor:
    """Return the predictor of the app that the request came to."""
    predictor: Predictor = request.app.state.predictor
    return predictor


def set_limits(app: FastAPI, limits: CallerLimits | None) -> None:
    """Have the routes of `app` count texts in `limits`, if callers are limited."""
    app.state.limits = limits


def get_limits(request: Request) -> CallerLimits | None:
    """Return the callers' limits, if there are any."""
    limits: CallerLimits | None = request.app.state.limits
    return limits


@dataclass(frozen=True)
class Loop:
    """What the routes besides the predictions stand on."""

    settings: Settings
    storage: Storage
    work: DatabaseWork = field(default_factory=DatabaseWork)


def set_loop(app: FastAPI, loop: Loop) -> None:
    """Have the routes of `app` use `loop`."""
    app.state.loop = loop


def get_loop(request: Request) -> Loop:
    """Return the loop of the app that the request came to."""
    loop: Loop = request.app.state.loop
    return loop


def set_suggester(app: FastAPI, suggester: Suggester) -> None:
    """Have the routes of `app` learn from `suggester` what to label next."""
    app.state.suggester = suggester


def get_suggester(request: Request) -> Suggester:
    """Return what knows what to label next."""
    suggester: Suggester = request.app.state.suggester
    return suggester


def set_metrics(app: FastAPI, metrics: Metrics, scrape: Scrape) -> None:
    """Have the routes of `app` count in `metrics`, and tell `scrape`."""
    app.state.metrics = metrics
    app.state.scrape = scrape


def get_metrics(request: Request) -> Metrics:
    """Return the metrics of the app that the request came to."""
    metrics: Metrics = request.app.state.metrics
    return metrics


def get_scrape(request: Request) -> Scrape:
    """Return what `/metrics` answers with."""
    scrape: Scrape = request.app.state.scrape
    return scrape
