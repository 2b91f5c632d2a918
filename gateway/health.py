"""`GET /health/live` and `GET /health/ready`."""

import orjson
from fastapi import Request, Response

from gateway.deps import DirectRoute, get_predictor
from gateway.openapi import problem_responses
from gateway.problems import EndingError, ModelUnavailableError
from gateway.schemas import Health
from serving.triton_client import ModelFailedError, NotLoadedError, TritonTimeoutError, TritonUnavailableError

_REASONS: dict[type[Exception], str] = {
    NotLoadedError: "Triton runs, and has no version of the model loaded.",
    ModelFailedError: "Triton runs, and the model fails whatever it is asked.",
    TritonUnavailableError: "Triton is down, starting, or cannot be reached.",
    TritonTimeoutError: "The model does not answer in time.",
}
"""In words of our own: what Triton says names paths, and goes to the log."""


async def health_live(_request: Request) -> Response:
    """Answer as long as the process runs: where this fails, restart it."""
    return _status("alive")


async def health_ready(request: Request) -> Response:
    """Answer 200 only while the model can answer: where this fails, send requests elsewhere."""
    predictor = get_predictor(request)
    if not predictor.ready:
        raise ModelUnavailableError(why_not(predictor.failure))
    return _status("ready")


def why_not(failure: Exception | None) -> str:
    """Why the model cannot answer, in words for whoever asks."""
    if failure is None:
        return "The gateway starts: the model has not answered yet."
    told = (reason for kind, reason in _REASONS.items() if isinstance(failure, kind))
    return next(told, "The model cannot be asked, for a reason that the gateway's log has.")


def _status(status: str) -> Response:
    return Response(orjson.dumps({"status": status}), media_type="application/json")


routes = [
    DirectRoute(
        "/health/live",
        health_live,
        scope=None,
        methods=["GET"],
        operation_id="health_live",
        summary="Is the process alive?",
        tags=["health"],
        responses={
            200: {"model": Health, "content": {"application/json": {"example": {"status": "alive"}}}},
            **problem_responses(),
        },
    ),
    DirectRoute(
        "/health/ready",
        health_ready,
        scope=None,
        methods=["GET"],
        operation_id="health_ready",
        summary="Can the model answer?",
        tags=["health"],
        responses={
            200: {"model": Health, "content": {"application/json": {"example": {"status": "ready"}}}},
            **problem_responses(ModelUnavailableError, EndingError),
        },
    ),
]
