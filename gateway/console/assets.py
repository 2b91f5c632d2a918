"""What the pages load besides themselves: style, scripts and the two libraries, kept in memory.

A name holds a hash of the content, so a browser may keep what it has for ever and asks anew for what was changed.
"""

import gzip
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fastapi import Request, Response

from gateway.deps import DirectRoute, Endpoint

_DIRECTORY = Path(__file__).resolve().parent / "static"
_PREFIX = "/console/static"
_MEDIA_TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
CACHE = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class Asset:
    """A file, as it is sent."""

    path: str
    body: bytes
    compressed: bytes
    media_type: str


@lru_cache(maxsize=1)
def assets() -> dict[str, Asset]:
    """Every file by its name, such as `vendor/htmx.min.js`."""
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
    """A route for each file, open to everybody: they are the same in every installation."""
    return [
        DirectRoute(asset.path, _answer_with(asset), scope=None, methods=["GET"], include_in_schema=False)
        for asset in assets().values()
    ]


def _answer_with(asset: Asset) -> Endpoint:
    async def answer(request: Request) -> Response:
        headers = {"Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            return Response(asset.compressed, headers=headers, media_type=asset.media_type)
        return Response(asset.body, headers=headers, media_type=asset.media_type)

    return answer
