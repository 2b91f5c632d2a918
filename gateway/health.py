"""`GET /health/live` and `GET /health/ready`."""

import orjson
from fastapi import Request, Response

from gateway.deps import DirectRoute, get_predictor
from gateway.openapi import problem_responses
from gateway.problems import EndingError, ModelUnavailableError
from gateway.schemas import Health


async def health_live(_request: Request) -> Response:
    """Answer as long as the process runs: where this fails, restart it."""
    return _status("alive")


async def health_ready(request: Request) -> Response:
    """Answer 200 only while the model can answer: where this fails, send requests elsewhere."""
    if not get_predictor(request).ready:
        raise ModelUnavailableError("Triton is down, has no version of the model loaded, or fails to run it.")
    return _status("ready")


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
