"""Request handling of the console's pages: access control, forms, and errors as pages."""

import logging
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from gateway.auth.admin_key import printing_command
from gateway.auth.sessions import Session
from gateway.console import forms
from gateway.console.rendering import render
from gateway.http.error_handlers import as_problem
from gateway.http.problems import (
    ActionNotConfirmedError,
    KeyNeededError,
    KeyNotAllowedError,
    ProblemError,
    RequestForgedError,
    RequestTimeoutError,
    UnexpectedError,
)
from gateway.http.request_body import read_body
from gateway.routes.context import AppContext, get_context
from gateway.routes.direct_route import DirectRoute
from storage.api_keys import Scope

NAVIGATION = (
    ("/", "Try"),
    ("/console/health", "Health"),
    ("/console/quality", "Quality"),
    ("/console/versions", "Versions"),
    ("/console/label", "Label"),
    ("/console/events", "Events"),
)
CONTENT_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
"""Content security policy: pages use only this gateway's own files. Inline scripts never run, whatever users wrote."""
ACTION_FIELD = "action_token"
ACTION_HEADER = "X-Action-Token"
KEY_FIELD = "key"
"""The field for an API key, used to sign in, or to confirm an action if the page has no action token."""
FORM_BYTES = 16 * 1024
"""Maximum size of a form, except for views that accept texts."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageRequest:
    """A request for a page, with the session and scopes of the user."""

    request: Request
    session: Session | None
    scopes: frozenset[Scope]
    """Scopes of the user: those that need no key, and those of the session's key."""
    form: dict[str, str] = field(default_factory=dict)
    """Fields of the form, with line ends as they were typed."""
    is_form: bool = False
    """True if the body is a form, so that a page can offer to send it again."""
    body: bytes = b""
    """The body if it is not a form."""

    @property
    def app(self) -> AppContext:
        """The context of the gateway."""
        return get_context(self.request)

    @property
    def is_partial(self) -> bool:
        """True if a script (htmx) requests only a part of the page."""
        return "hx-request" in self.request.headers

    @property
    def here(self) -> str:
        """Path and query of the page that the user sees: of this request, or of the page that sent it."""
        url = self.request.url
        if self.request.method == "GET" and not self.is_partial:
            return f"{url.path}?{url.query}" if url.query else url.path
        return re.sub(r"^https?://[^/]*", "", self.request.headers.get("referer", "")) or "/"

    def rights(self) -> dict[str, object]:
        """Return the template variable `may`, which says which scopes the user has."""
        return {
            "may": {scope.value: scope in self.scopes for scope in Scope},
        }

    def page(self, template: str, context: Mapping[str, object], status: int = 200) -> Response:
        """Render a whole page."""
        shared: dict[str, object] = {
            **self.rights(),
            "navigation": NAVIGATION,
            "path": self.request.url.path,
            "here": self.here,
            "session": self.session,
            "version": self.app.predictor.model.version,
            "is_ready": self.app.predictor.model.ready,
        }
        return Response(render(template, {**shared, **context}), status, media_type="text/html; charset=utf-8")

    def part(self, template: str, page: str, context: Mapping[str, object]) -> Response:
        """Render a part of a page if a script requests it, otherwise the page that includes it."""
        return self.page(template if self.is_partial else page, context)

    def sign_in_page(self, target: str, needed: str = "", fault: str = "", status: int = 200) -> Response:
        """Render the page to sign in, which then leads to `target`.

        `needed` says why, if the user opened another page; `fault` is what was wrong with the key.
        """
        context = {"next": target, "needed": needed, "fault": fault, "key_command": printing_command(self.app.settings)}
        return self.page("sign_in.html", context, status)

    def problem(self, problem: ProblemError) -> Response:
        """Render an error, as a page or as a part of one. A page that needs a key asks for it."""
        again = None
        if isinstance(problem, ActionNotConfirmedError) and self.is_form:
            again = [(name, value) for name, value in self.form.items() if name not in (KEY_FIELD, ACTION_FIELD)]
        if isinstance(problem, KeyNeededError) and self.request.method == "GET" and not self.is_partial:
            response = self.sign_in_page(self.here, problem.detail, status=problem.status)
        else:
            template = "_problem.html" if self.is_partial else "problem.html"
            context = {"problem": problem, "again": again, "is_part": self.is_partial}
            response = self.page(template, context, problem.status)
        response.headers.update(problem.own_headers())
        return response


Endpoint = Callable[[PageRequest], Coroutine[Any, Any, Response]]


def view(
    method: Literal["GET", "POST"],
    path: str,
    needed: Scope | None,
    endpoint: Endpoint,
    *,
    media_type: str = forms.MEDIA_TYPE,
    most_bytes: int = FORM_BYTES,
    within_s: float | None = None,
    needs_token: bool = True,
) -> DirectRoute:
    """Create the route of a page for users with the scope `needed`, or for everybody if it is None.

    The body of a POST is a form, or has another media type and is not parsed. It has at most `most_bytes`, and is read
    only if the user may send it. In a session it also needs the action token, unless `needs_token` is false.
    """

    async def answer(request: Request) -> Response:
        session: Session | None = request.scope["state"]["session"]
        page_request = PageRequest(request, session, request.scope["state"]["scopes"])
        try:
            if method == "POST":
                _check_origin(page_request)
            if needed is not None and needed not in page_request.scopes:
                raise _refusal(page_request, needed)
            if method == "POST":
                token = request.headers.get(ACTION_HEADER, "")
                is_confirmed = session is None or not needs_token or page_request.app.sessions.may_act(session, token)
                if media_type == forms.MEDIA_TYPE:
                    form = forms.parse_form(await read_body(request, media_type, most_bytes, within_s))
                    page_request = replace(page_request, form=form, is_form=True)
                if not is_confirmed:
                    _check_confirmed(page_request)
                if media_type != forms.MEDIA_TYPE:
                    page_request = replace(
                        page_request, body=await read_body(request, media_type, most_bytes, within_s)
                    )
            return await endpoint(page_request)
        except Exception as error:
            problem = as_problem(error)
            if problem is not None and isinstance(error, (ClientDisconnect, RequestTimeoutError)):
                # No user reads a page then, and rendering hundreds at once would block all other requests.
                return problem.response()
            if problem is None:
                log.exception("The console failed to handle a request.")
                problem = UnexpectedError("An unexpected error occurred; see the server's log.")
            return page_request.problem(problem)

    return DirectRoute(path, answer, scope=None, method=method, include_in_schema=False)


def _check_origin(page_request: PageRequest) -> None:
    """Refuse requests that another site makes the browser send, by the headers Sec-Fetch-Site or Origin."""
    headers = page_request.request.headers
    site = headers.get("sec-fetch-site")
    if site is None:
        origin = headers.get("origin", "").partition("://")[2]
        own = (headers.get("host", ""), page_request.app.settings.public_url.partition("://")[2])
        site = "same-origin" if origin and origin in own else ""
    if site != "same-origin":
        raise RequestForgedError("The request did not come from a page of this gateway.")


def _check_confirmed(page_request: PageRequest) -> None:
    """Refuse an action that has neither the session's action token nor its key."""
    sessions, session = page_request.app.sessions, page_request.session
    if session is None or sessions.may_act(session, page_request.form.get(ACTION_FIELD, "")):
        return
    key = page_request.form.get(KEY_FIELD, "").strip()
    if key and sessions.is_key_of(session, key):
        return
    if key:
        page_request.app.wrong_keys.count(page_request.request.scope)
    detail = "This page has no valid action token of your session. Enter the key that you signed in with."
    raise ActionNotConfirmedError(detail)


def _refusal(page_request: PageRequest, needed: Scope) -> ProblemError:
    if page_request.session is None:
        what = "This page shows texts that users wrote. Sign in with" if needed is Scope.TEXTS else "This needs"
        return KeyNeededError(f"{what} an API key that has the scope {needed.value}; the admin key has all scopes.")
    who = page_request.session
    return KeyNotAllowedError(f"The key {who.caller.name} lacks the scope {needed.value}; it has {who.allowed}.")
