"""Signing in with an API key, and out. The key is sent once, in a form, and is kept nowhere."""

from urllib.parse import urlsplit

from fastapi import Response

from gateway.console.views import Visit, view
from gateway.problems import KeyNeededError

PATH = "/console/sign-in"
OUT_PATH = "/console/sign-out"
_SEE_OTHER = 303
_LONGEST_KEY = 1_000


async def show(visit: Visit) -> Response:
    """The page."""
    return visit.page("sign_in.html", {"next": _own_path(visit.request.query_params.get("next", "")), "fault": ""})


async def sign_in(visit: Visit) -> Response:
    """Begin a session, and go on to the page that was wanted."""
    key = visit.form.get("key", "").strip()
    target = _own_path(visit.form.get("next", ""))
    session = visit.console.sessions.begin(key.encode()) if 0 < len(key) <= _LONGEST_KEY else None
    if session is None:
        fault = "This is no valid API key."
        return visit.page("sign_in.html", {"next": target, "fault": fault}, KeyNeededError.status)
    headers = {"Location": target, "Set-Cookie": visit.console.sessions.set_cookie(session)}
    return Response(status_code=_SEE_OTHER, headers=headers)


async def sign_out(visit: Visit) -> Response:
    """End the session."""
    if visit.session is not None:
        visit.console.sessions.end(visit.session)
    headers = {"Location": "/", "Set-Cookie": visit.console.sessions.set_cookie(None)}
    return Response(status_code=_SEE_OTHER, headers=headers)


def _own_path(target: str) -> str:
    """The path to go on to; one of ours, or else the first page: never another site, however it is written."""
    parts = urlsplit(target) if target.isprintable() and "\\" not in target else urlsplit("")
    is_own = parts.path.startswith("/") and not target.startswith("//") and not parts.scheme and not parts.netloc
    return target if is_own and target.isascii() else "/"


routes = [
    view("GET", PATH, None, show),
    view("POST", PATH, None, sign_in),
    view("POST", OUT_PATH, None, sign_out),
]
