"""The pages to sign in with an API key and to sign out. The key is sent in a form and never stored."""

import logging
from dataclasses import replace

from fastapi import Response

from gateway.console.page import KEY_FIELD, PageRequest, view
from gateway.http.problems import KeyNeededError, StorageUnavailableError
from storage.ended_sessions import end_session

PATH = "/console/sign-in"
OUT_PATH = "/console/sign-out"
_SEE_OTHER = 303
_LONGEST_KEY = 1_000
_LONGEST_TARGET = 1_000
_FORM_BYTES = 2 * 1024
"""Maximum size of a form to sign in or out; sending it needs no key."""
_FORM_S = 5.0
"""Seconds within which such a form must arrive."""
_NOT_EVERYWHERE = (
    "You are signed out in this browser and at this gateway. The database does not respond, so other gateways may "
    "accept the session until it expires. To end it everywhere now, revoke the key."
)

log = logging.getLogger(__name__)


async def show(page_request: PageRequest) -> Response:
    """Show the sign-in page."""
    return page_request.sign_in_page(_own_path(page_request.request.query_params.get("next", "")))


async def sign_in(page_request: PageRequest) -> Response:
    """Start a session, return its action token, and continue to the requested page."""
    key = page_request.form.get(KEY_FIELD, "").strip()
    target = _own_path(page_request.form.get("next", ""))
    sessions = page_request.app.sessions
    begun = sessions.begin(key.encode()) if 0 < len(key) <= _LONGEST_KEY else None
    if begun is None:
        page_request.app.wrong_keys.count(page_request.request.scope)
        return page_request.sign_in_page(target, fault="This is not a valid API key.", status=KeyNeededError.status)
    session, cookie = begun
    context = {"next": target, "action_token": sessions.action_token(session)}
    response = replace(page_request, session=session).page("signed_in.html", context)
    response.headers["Set-Cookie"] = sessions.set_cookie(cookie)
    return response


async def sign_out(page_request: PageRequest) -> Response:
    """End the session at all gateways."""
    sessions, session = page_request.app.sessions, page_request.session
    response = Response(status_code=_SEE_OTHER, headers={"Location": "/"})
    if session is not None:
        sessions.end(session)
        database = page_request.app.storage.open
        try:
            await page_request.app.work.run(lambda: end_session(database(), session.id, session.ends_at))
        except StorageUnavailableError:
            log.warning("Cannot end the session of %s everywhere: the database does not respond.", session.caller.name)
            response = page_request.problem(StorageUnavailableError(_NOT_EVERYWHERE))
    response.headers["Set-Cookie"] = sessions.set_cookie("")
    return response


def _own_path(target: str) -> str:
    """Return `target` if it is a path of this gateway, otherwise `/`. It never leads to another site."""
    is_own = target.startswith("/") and not target.startswith("//") and len(target) <= _LONGEST_TARGET
    return target if is_own and target.isascii() and target.isprintable() and "\\" not in target else "/"


routes = [
    view("GET", PATH, None, show),
    view("POST", PATH, None, sign_in, most_bytes=_FORM_BYTES, within_s=_FORM_S, needs_token=False),
    # Signing out needs no action token: the cookie alone can end the session, but do nothing else.
    view("POST", OUT_PATH, None, sign_out, most_bytes=_FORM_BYTES, within_s=_FORM_S, needs_token=False),
]
