"""How the console's pages are asked for: who may see and do what, forms, and errors as pages."""

import hmac
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

from fastapi import Request, Response

from gateway import problems
from gateway.admission import UnderWay
from gateway.console.pulse import Pulse
from gateway.console.rendering import render
from gateway.console.sessions import Session, Sessions
from gateway.deps import DirectRoute, Loop, get_loop, get_predictor
from gateway.problems import (
    FieldError,
    InvalidFieldsError,
    KeyNeededError,
    KeyNotAllowedError,
    ProblemError,
    RequestForgedError,
)
from gateway.request_body import read_body
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
"""What the pages may run and load: this gateway's own files. Nothing within a page runs, whatever users wrote."""
CSRF_FIELD = "csrf"
CSRF_HEADER = "X-CSRF-Token"
_FORM = "application/x-www-form-urlencoded"
_MOST_FIELDS = 20

log = logging.getLogger(__name__)


@dataclass
class Console:
    """What the pages stand on besides what all routes share."""

    sessions: Sessions
    pulse: Pulse
    under_way: UnderWay
    listeners: int = 0
    """Those who follow what is under way."""


@dataclass(frozen=True)
class Visit:
    """A request for a page, by somebody who may see it."""

    request: Request
    console: Console
    session: Session | None
    scopes: frozenset[Scope]
    """What the visitor may: what everybody may, and what the key of the session allows."""
    form: dict[str, str] = field(default_factory=dict)
    """The fields that were sent, with the line ends that were typed."""
    body: bytes = b""
    """What was sent, as it came."""

    @property
    def loop(self) -> Loop:
        """The settings and the database."""
        return get_loop(self.request)

    @property
    def is_partial(self) -> bool:
        """Whether a script asks for the part of a page that it puts into the one that is shown."""
        return "hx-request" in self.request.headers

    def rights(self) -> dict[str, object]:
        """What a template needs to offer what the visitor may do."""
        return {
            "may": {scope.value: scope in self.scopes for scope in Scope},
            "csrf_token": self.session.csrf_token if self.session else "",
        }

    def page(self, template: str, context: Mapping[str, object], status: int = 200) -> Response:
        """Answer with a whole page."""
        predictor = get_predictor(self.request)
        shared: dict[str, object] = {
            **self.rights(),
            "navigation": NAVIGATION,
            "path": self.request.url.path,
            "session": self.session,
            "version": predictor.version,
            "is_ready": predictor.ready,
        }
        return Response(render(template, {**shared, **context}), status, media_type="text/html; charset=utf-8")

    def part(self, template: str, page: str, context: Mapping[str, object]) -> Response:
        """Answer with a part of a page where a script asks for it, or else with the page that includes it."""
        return self.page(template if self.is_partial else page, context)

    def problem(self, problem: ProblemError) -> Response:
        """Answer with what went wrong."""
        template = "_problem.html" if self.is_partial else "problem.html"
        response = self.page(template, {"problem": problem}, problem.status)
        response.headers.update(problem.own_headers())
        return response


Endpoint = Callable[[Visit], Coroutine[Any, Any, Response]]


def set_console(app: Any, console: Console) -> None:
    """Have the pages of `app` use `console`."""
    app.state.console = console


def view(
    method: Literal["GET", "POST"], path: str, needed: Scope | None, endpoint: Endpoint, media_type: str = _FORM
) -> DirectRoute:
    """Make a route of a page, for those whose key, or who without one, may do what needs `needed`.

    What is posted is a form, or has another media type, and comes as it is.
    """

    async def answer(request: Request) -> Response:
        console: Console = request.app.state.console
        session = console.sessions.find(request.cookies.get(console.sessions.cookie_name, ""))
        scopes: frozenset[Scope] = request.scope["state"]["scopes"]
        visit = Visit(request, console, session, scopes | session.caller.scopes if session else scopes)
        try:
            if method == "POST":
                _check_origin(request)
                body = await read_body(request, media_type)
                visit = replace(visit, body=body, form=_read_form(body) if media_type == _FORM else {})
                _check_token(visit)
            if needed is not None and needed not in visit.scopes:
                raise _refusal(visit, needed)
            return await endpoint(visit)
        except Exception as error:
            problem = problems.as_problem(error)
            if problem is None:
                log.exception("The console could not answer.")
                problem = problems.UnexpectedError("Something unexpected went wrong; the server's log has it.")
            return visit.problem(problem)

    return DirectRoute(path, answer, scope=None, methods=[method], include_in_schema=False)


def _check_origin(request: Request) -> None:
    """Refuse what a page of another site has the browser send: browsers say where a request comes from."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    is_own = site == "same-origin" if site is not None else urlsplit(origin or "").netloc == request.headers["host"]
    if not is_own:
        raise RequestForgedError("The request does not come from a page of this gateway.")


def _check_token(visit: Visit) -> None:
    if visit.session is None:
        return  # There is nothing that a browser would add of itself.
    given = visit.request.headers.get(CSRF_HEADER) or visit.form.get(CSRF_FIELD, "")
    if not hmac.compare_digest(given.encode(), visit.session.csrf_token.encode()):
        raise RequestForgedError("The page is of another session; load it again.")


def _refusal(visit: Visit, needed: Scope) -> ProblemError:
    if visit.session is None:
        return KeyNeededError(f"Sign in with an API key for {needed.value}.")
    who = visit.session
    return KeyNotAllowedError(f"The key {who.caller.name} is for {who.allowed}; this needs {needed.value}.")


def _read_form(body: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS)
    except ValueError as error:
        raise InvalidFieldsError([FieldError("body", "is no form in UTF-8")]) from error
    # A browser that sends a form by itself ends lines as the standard for forms says, whatever was typed.
    return {name: value.replace("\r\n", "\n") for name, value in pairs}
