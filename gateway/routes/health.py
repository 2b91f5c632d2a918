"""`GET /health/live` and `GET /health/ready`."""

from collections.abc import Sequence

import orjson
from fastapi import Request, Response

from common.periodic import failing_tasks
from gateway.http.problems import EndingError, ModelUnavailableError
from gateway.http.schemas import Health
from gateway.routes.context import get_context
from gateway.routes.direct_route import DirectRoute
from gateway.routes.openapi import problem_responses
from serving.client.errors import (
    ModelFailedError,
    NoRoomError,
    NotLoadedError,
    TritonTimeoutError,
    TritonUnavailableError,
)

_REASONS: dict[type[Exception], str] = {
    NotLoadedError: "Triton runs, but has no version of the model loaded.",
    ModelFailedError: "Triton runs, but the model fails on every text.",
    NoRoomError: "Triton runs, but has no memory left for more requests.",
    TritonUnavailableError: "Triton is down, starting, or cannot be reached.",
    TritonTimeoutError: "The model does not respond in time.",
}
"""Public descriptions of failures. Triton's own messages contain paths, so they only go to the log."""

_OPEN = "of the Tritons let anyone who reaches them load models; the gateway's log says what to do."


async def health_live(_request: Request) -> Response:
    """200 while the process runs. If this fails, restart the process."""
    return _status("alive")


async def health_ready(request: Request) -> Response:
    """200 while the model responds. If this fails, send requests elsewhere."""
    model = get_context(request).predictor.model
    if not model.ready:
        raise ModelUnavailableError(why_not(model.failure))
    number = len(get_context(request).open_control.open)
    warnings = [f"{number} {_OPEN}"] if number else []
    # Only the class of the error: this route is public, and a message may name hosts and paths.
    warnings += [
        f"The task '{failure.task}' has kept failing since {failure.since:%Y-%m-%d %H:%M:%S} UTC "
        f"({failure.error_type}); the gateway's log says why."
        for failure in failing_tasks()
    ]
    return _status("ready", warnings)


def why_not(failure: Exception | None) -> str:
    """Return why the model is not ready, as a public message."""
    if failure is None:
        return "The gateway is starting: the model has not responded yet."
    reasons = (reason for kind, reason in _REASONS.items() if isinstance(failure, kind))
    return next(reasons, "The model cannot be called; see the gateway's log.")


def _status(status: str, warnings: Sequence[str] = ()) -> Response:
    body = {"status": status, "warnings": warnings} if warnings else {"status": status}
    return Response(orjson.dumps(body), media_type="application/json")


routes = [
    DirectRoute(
        "/health/live",
        health_live,
        scope=None,
        summary="Liveness of the process",
        responses={
            200: {"model": Health, "content": {"application/json": {"example": {"status": "alive"}}}},
            **problem_responses(),
        },
    ),
    DirectRoute(
        "/health/ready",
        health_ready,
        scope=None,
        summary="Readiness of the model",
        responses={
            200: {"model": Health, "content": {"application/json": {"example": {"status": "ready"}}}},
            **problem_responses(ModelUnavailableError, EndingError),
        },
    ),
]
