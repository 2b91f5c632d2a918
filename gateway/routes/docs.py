"""`GET /openapi.json` (the API's description) and `GET /docs` (its page with Swagger UI)."""

import base64
import hashlib

from fastapi import Request, Response

from gateway.routes.direct_route import DirectRoute

PATH = "/docs"
OPENAPI_PATH = "/openapi.json"

_SWAGGER_UI = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0"
_SCRIPT = f"""
SwaggerUIBundle({{url: "{OPENAPI_PATH}", dom_id: "#swagger-ui", deepLinking: true}});
"""
# The hashes allow only the files of this release, even if somebody else controls the CDN.
_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Sentiment: the API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{_SWAGGER_UI}/swagger-ui.css" crossorigin="anonymous"
  integrity="sha384-WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{_SWAGGER_UI}/swagger-ui-bundle.js" crossorigin="anonymous"
  integrity="sha384-gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9"></script>
<script>{_SCRIPT}</script>
</body>
</html>
"""

CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_SWAGGER_UI}/ 'sha256-{base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()}'",
        # Swagger UI adds inline styles to the page, with images in them.
        f"style-src {_SWAGGER_UI}/ 'unsafe-inline'",
        "img-src data:",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
"""Content security policy of the page: one release of Swagger UI, and requests to this server."""


async def docs(_request: Request) -> Response:
    """Answer with the page."""
    return Response(_PAGE, media_type="text/html")


async def openapi(request: Request) -> Response:
    """Answer with the OpenAPI document."""
    return Response(request.app.openapi_json, media_type="application/json")


routes = [
    DirectRoute(path, endpoint, scope=None, include_in_schema=False)
    for path, endpoint in ((PATH, docs), (OPENAPI_PATH, openapi))
]
