"""The console's routes and their response headers."""

from gateway.console import assets, sign_in
from gateway.console.page import CONTENT_POLICY
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
from gateway.http.security_headers import Header, security_headers
from gateway.routes.direct_route import DirectRoute


def routes() -> list[DirectRoute]:
    """Return all routes of the console."""
    return [*_pages(), *assets.routes()]


def page_paths() -> frozenset[str]:
    """Return the paths on which session cookies are accepted."""
    return frozenset(route.path for route in _pages())


def headers(is_https: bool) -> dict[str, list[Header]]:
    """Return the security headers of each path."""
    # With `no-referrer`, browsers would also hide the origin of a form.
    of_pages = security_headers(is_https, CONTENT_POLICY, referrer="same-origin")
    of_files = security_headers(is_https, cache=assets.CACHE)
    return {route.path: of_pages for route in _pages()} | {route.path: of_files for route in assets.routes()}


def _pages() -> list[DirectRoute]:
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
    return [route for page in pages for route in page.routes]
