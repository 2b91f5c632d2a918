"""What the routes share: how they are called, and where they find the predictor and the loop."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute

from gateway.metrics import Metrics
from gateway.predictor import Predictor
from gateway.scrape import Scrape
from settings import Settings
from storage.storage import Storage


class DirectRoute(APIRoute):
    """A route that gives its endpoint the request as it is.

    FastAPI documents it like any other, but takes no arguments from the request and injects nothing, which costs
    as much as all the rest of a request: a constant answer went from 8,300 to 13,000 requests/s. For the same
    reason these routes are given to the app in a list, for an included router costs 2,000 more.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the endpoint itself."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


def set_predictor(app: FastAPI, predictor: Predictor) -> None:
    """Have the routes of `app` answer through `predictor`."""
    app.state.predictor = predictor


def get_predictor(request: Request) -> Predictor:
    """Return the predictor of the app that the request came to."""
    predictor: Predictor = request.app.state.predictor
    return predictor


@dataclass(frozen=True)
class Loop:
    """What the routes besides the predictions stand on."""

    settings: Settings
    storage: Storage
    admin_key: str


def set_loop(app: FastAPI, loop: Loop) -> None:
    """Have the routes of `app` use `loop`."""
    app.state.loop = loop


def get_loop(request: Request) -> Loop:
    """Return the loop of the app that the request came to."""
    loop: Loop = request.app.state.loop
    return loop


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
