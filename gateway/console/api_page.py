"""`GET /openapi.json` (the API's description) and `GET /docs` (its page with Swagger UI)."""

from fastapi import Request, Response

from gateway.console.rendering import render
from gateway.routes.direct_route import DirectRoute

PATH = "/docs"
OPENAPI_PATH = "/openapi.json"

CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        # Swagger UI adds inline styles to the page, with images in them.
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
"""Content security policy of the page: like the console's, but styles may be inline and no form is sent."""


async def docs(_request: Request) -> Response:
    """Answer with the page."""
    return Response(render("api.html", {"openapi": OPENAPI_PATH}), media_type="text/html")


async def openapi(request: Request) -> Response:
    """Answer with the OpenAPI document."""
    return Response(request.app.openapi_json, media_type="application/json")


routes = [
    DirectRoute(path, endpoint, scope=None, include_in_schema=False)
    for path, endpoint in ((PATH, docs), (OPENAPI_PATH, openapi))
]
