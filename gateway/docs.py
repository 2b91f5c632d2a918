"""`GET /docs`: the API's description as a page, by Swagger UI."""

import base64
import hashlib

from fastapi import Request, Response

from gateway.deps import DirectRoute

PATH = "/docs"
OPENAPI_PATH = "/openapi.json"

_SWAGGER_UI = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0"
_SCRIPT = f"""
SwaggerUIBundle({{url: "{OPENAPI_PATH}", dom_id: "#swagger-ui", deepLinking: true}});
"""
# With hashes, so that no other script than this very release's can run here, whoever holds the server that has it.
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
        # Swagger UI writes styles into the page and has its pictures in them.
        f"style-src {_SWAGGER_UI}/ 'unsafe-inline'",
        "img-src data:",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
"""What the page may run, load and ask: Swagger UI of one release, and this server."""


async def docs(_request: Request) -> Response:
    """Answer with the page."""
    return Response(_PAGE, media_type="text/html")


routes = [DirectRoute(PATH, docs, scope=None, methods=["GET"], include_in_schema=False)]
