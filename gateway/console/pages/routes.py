"""The console's routes and their response headers."""

from fastapi import Response

from gateway.auth.access import PAGES
from gateway.console import assets, sign_in
from gateway.console.page import CONTENT_POLICY, PageRequest, view
from gateway.console.pages import (
    actions,
    events,
    health,
    label,
    progress,
    quality,
    releases,
    score_file,
    try_page,
    versions,
)
from gateway.http.error_handlers import allowed_methods
from gateway.http.problems import MethodNotAllowedError, NotFoundError
from gateway.http.security_headers import Header, security_headers
from gateway.routes.direct_route import DirectRoute

_OTHER = PAGES + "{path:path}"


async def nothing(page_request: PageRequest) -> Response:
    """Say that there is no page at this path, or that it only accepts forms."""
    if allowed := allowed_methods(page_request.request, besides=_OTHER):
        raise MethodNotAllowedError("This path only accepts what a page sends. Open one of the pages above.", allowed)
    raise NotFoundError("There is no page at this path. Open one of the pages above.")


def routes() -> list[DirectRoute]:
    """Return all routes of the console. The last one matches all other paths."""
    pages = (
        try_page,
        score_file,
        label,
        health,
        quality,
        versions,
        releases,
        actions,
        progress,
        events,
        sign_in,
    )
    return [
        *(route for page in pages for route in page.routes),
        *assets.routes(),
        view("GET", _OTHER, None, nothing),
    ]


def page_headers(is_https: bool) -> list[Header]:
    """Return the security headers of all pages."""
    # With `no-referrer`, browsers would also hide the origin of a form.
    return security_headers(is_https, CONTENT_POLICY, referrer="same-origin")


def file_headers(is_https: bool) -> dict[str, list[Header]]:
    """Return the security headers of the static files, by path."""
    of_files = security_headers(is_https, cache=assets.CACHE)
    return {route.path: of_files for route in assets.routes()}
