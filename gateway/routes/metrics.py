"""`GET /metrics`."""

from fastapi import Request, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from gateway.routes.context import get_context
from gateway.routes.direct_route import DirectRoute
from gateway.routes.openapi import problem_responses
from storage.api_keys import Scope


async def get_metrics(request: Request) -> Response:
    """All metrics, in Prometheus's text format."""
    return Response(await get_context(request).scrape.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


routes = [
    DirectRoute(
        "/metrics",
        get_metrics,
        scope=Scope.READ,
        summary="Metrics in Prometheus's text format",
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problem_responses()},
    )
]
