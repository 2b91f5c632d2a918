"""The console's routes, and the headers of their answers."""

from gateway.console import (
    assets,
    changes,
    events,
    file_scoring,
    health,
    labelling,
    progress,
    quality,
    releases,
    signing_in,
    trying,
    versions,
)
from gateway.console.views import CONTENT_POLICY
from gateway.deps import DirectRoute
from gateway.security_headers import Header, security_headers


def routes() -> list[DirectRoute]:
    """Every route of the console."""
    return [*_pages(), *assets.routes()]


def headers(is_https: bool) -> dict[str, list[Header]]:
    """What browsers may do with each answer, by path."""
    # With `no-referrer`, browsers would not say either where a form comes from.
    of_pages = security_headers(is_https, CONTENT_POLICY, referrer="same-origin")
    of_files = security_headers(is_https, cache=assets.CACHE)
    return {route.path: of_pages for route in _pages()} | {route.path: of_files for route in assets.routes()}


def _pages() -> list[DirectRoute]:
    pages = (
        trying,
        file_scoring,
        labelling,
        health,
        quality,
        versions,
        releases,
        changes,
        progress,
        events,
        signing_in,
    )
    return [route for page in pages for route in page.routes]
