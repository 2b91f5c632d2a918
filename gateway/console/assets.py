"""The static files of the pages, kept in memory: styles, scripts and libraries.

Each URL contains a hash of the content, so browsers can cache files for ever and still load changed ones.
"""

import gzip
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fastapi import Request, Response
from starlette.responses import StreamingResponse

from gateway.routes.direct_route import DirectRoute, Endpoint

_DIRECTORY = Path(__file__).resolve().parent / "static"
_PREFIX = "/console/static"
_MEDIA_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
CACHE = "public, max-age=31536000, immutable"
_PIECE_BYTES = 64 * 1024
"""Files are sent in pieces of this size. A client that reads slowly holds one of them and not the whole file."""


@dataclass(frozen=True)
class Asset:
    """A static file in the form in which it is sent."""

    path: str
    body: bytes
    compressed: bytes
    media_type: str


@lru_cache(maxsize=1)
def assets() -> dict[str, Asset]:
    """Return all static files by name, such as `vendor/htmx.min.js`."""
    found = {}
    for file in sorted(_DIRECTORY.rglob("*")):
        media_type = _MEDIA_TYPES.get(file.suffix)
        if media_type is not None:
            body = file.read_bytes()
            path = f"{_PREFIX}/{file.stem}.{hashlib.sha256(body).hexdigest()[:12]}{file.suffix}"
            name = file.relative_to(_DIRECTORY).as_posix()
            found[name] = Asset(path, body, gzip.compress(body, mtime=0), media_type)
    return found


def routes() -> list[DirectRoute]:
    """Return a route for each file. They need no key, because the files are the same in every installation."""
    return [
        DirectRoute(asset.path, _answer_with(asset), scope=None, include_in_schema=False) for asset in assets().values()
    ]


def _answer_with(asset: Asset) -> Endpoint:
    async def answer(request: Request) -> Response:
        headers, body = {"Vary": "Accept-Encoding"}, asset.body
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"], body = "gzip", asset.compressed
        headers["Content-Length"] = str(len(body))
        return StreamingResponse(_pieces(body), headers=headers, media_type=asset.media_type)

    return answer


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _PIECE_BYTES):
        yield body[start : start + _PIECE_BYTES]
