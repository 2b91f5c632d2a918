"""Makes an app respond to every exception with a problem (`gateway.http.problems`)."""

import http
from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from gateway.http.problems import (
    NO_TYPE,
    FieldError,
    InvalidFieldsError,
    MalformedBodyError,
    MethodNotAllowedError,
    ModelTimeoutError,
    ModelUnavailableError,
    ProblemError,
    problem_response,
)
from serving.client.errors import TritonTimeoutError, TritonUnavailableError

# The framework's own texts are two words long.
_NOT_FOUND = "There is nothing at this path; /docs lists all routes."
_NOT_ALLOWED = "This path does not allow this method; the Allow header lists the allowed ones."


def answer_with_problems(app: FastAPI) -> None:
    """Make `app` respond to every error with a problem, including the framework's own errors."""
    for kind in (
        ProblemError,
        TritonUnavailableError,
        TritonTimeoutError,
        RequestValidationError,
        ClientDisconnect,
        HTTPException,
        Exception,
    ):
        app.add_exception_handler(kind, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        if error.status_code == 405:
            return MethodNotAllowedError(_NOT_ALLOWED, allowed_methods(request)).response()
        detail = _NOT_FOUND if error.status_code == 404 else error.detail
        return _http_response(error.status_code, detail, error.headers)
    problem = as_problem(error)
    if problem is not None:
        return problem.response()
    # The message of an unexpected exception is for the log, not for clients. The server logs it, and then closes the
    # connection: without this header, the client would lose its next request on it.
    return _http_response(500, "An unexpected error occurred; see the server's log.", {"Connection": "close"})


def allowed_methods(request: Request, besides: str = "") -> str:
    """Return the methods of all routes of a path, except the route `besides`: the framework names only the first's."""
    matching = [
        route
        for route in request.app.routes
        if route.path != besides and route.matches(request.scope)[0] is not Match.NONE
    ]
    return ", ".join(sorted({method for route in matching for method in route.methods or ()}))


def as_problem(error: Exception) -> ProblemError | None:
    """Return the problem that reports an error to a client, or None for an internal error."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, TritonUnavailableError):
        return ModelUnavailableError("The model cannot respond now; try again in a second.")
    if isinstance(error, TritonTimeoutError):
        return ModelTimeoutError("The model did not respond within the deadline; try again, or send less text.")
    if isinstance(error, ClientDisconnect):
        return MalformedBodyError("The connection was closed before the body was complete.")
    if isinstance(error, RequestValidationError):
        return InvalidFieldsError(
            [FieldError(".".join(map(str, item["loc"])), f"is wrong: {item['msg']}") for item in error.errors()]
        )
    return None


def _http_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    return problem_response(status, NO_TYPE, http.HTTPStatus(status).phrase, detail, (), headers or {})
