"""What can go wrong for a client, each as an RFC 9457 problem, and the one handler that answers with it."""

import http
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serving.triton_client import TritonTimeoutError, TritonUnavailableError

MEDIA_TYPE = "application/problem+json"
_TYPE_PREFIX = "urn:sentiment:problem:"
_NO_TYPE = "about:blank"
"""RFC 9457, section 4.2.1: the problem means no more than its HTTP status says."""

_DETAILS = {
    404: "Nothing is at this path; /docs shows what there is.",
    405: "This path does not take this method; the Allow header names those it takes.",
}
"""The framework's own errors, in more than its two words."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field of a request, and what would be right."""

    field: str
    """The field's place in the body, such as `texts[3]`; `body` is the whole."""
    message: str


class ProblemError(Exception):
    """A problem that the client is told. Subclasses are the kinds: a client may rely on their `type`."""

    status: ClassVar[int]
    type: ClassVar[str]
    title: ClassVar[str]
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, detail: str, errors: Sequence[FieldError] = (), retry_after_s: float | None = None) -> None:
        """Tell `detail`, a sentence about this occurrence, the fields at fault, and when to ask again."""
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.retry_after_s = retry_after_s

    def own_headers(self) -> Mapping[str, str]:
        """The headers of an answer that tells of this occurrence."""
        if self.retry_after_s is None:
            return self.headers
        return {**self.headers, "Retry-After": str(max(1, math.ceil(self.retry_after_s)))}

    def response(self) -> Response:
        """Build the answer."""
        return _response(self.status, self.type, self.title, self.detail, self.errors, self.own_headers())


class MalformedBodyError(ProblemError):
    """The body cannot be read as JSON."""

    status = 400
    type = _TYPE_PREFIX + "malformed-body"
    title = "The body is not JSON"


class MalformedRequestError(ProblemError):
    """What was sent is not HTTP."""

    status = 400
    type = _TYPE_PREFIX + "malformed-request"
    title = "The request is not HTTP"


class KeyNeededError(ProblemError):
    """The route needs an API key, and none or an unknown one was given."""

    status = 401
    type = _TYPE_PREFIX + "key-needed"
    title = "An API key is needed"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class KeyNotAllowedError(ProblemError):
    """The API key is known, and is for other things."""

    status = 403
    type = _TYPE_PREFIX + "key-not-allowed"
    title = "The API key is for other things"


class RequestForgedError(ProblemError):
    """The request does not come from a page of this gateway, or from one that was made for another session."""

    status = 403
    type = _TYPE_PREFIX + "request-forged"
    title = "The request comes from elsewhere"


class NotFoundError(ProblemError):
    """What the path names is not there."""

    status = 404
    type = _TYPE_PREFIX + "not-found"
    title = "There is no such thing"


class RequestTimeoutError(ProblemError):
    """The request was sent too slowly."""

    status = 408
    type = _TYPE_PREFIX + "request-timeout"
    title = "The request did not come in time"


class ConflictError(ProblemError):
    """What was asked for cannot be done as things are."""

    status = 409
    type = _TYPE_PREFIX + "conflict"
    title = "This cannot be done now"


class TooLargeError(ProblemError):
    """The body is over the limit, in bytes or in texts."""

    status = 413
    type = _TYPE_PREFIX + "too-large"
    title = "The request is too large"


class UnsupportedMediaTypeError(ProblemError):
    """The body is not sent as plain `application/json`."""

    status = 415
    type = _TYPE_PREFIX + "unsupported-media-type"
    title = "The body is not sent as JSON"
    headers: ClassVar[Mapping[str, str]] = {"Accept-Encoding": "identity"}


class HostRefusedError(ProblemError):
    """The request was meant for another host."""

    status = 421
    type = _TYPE_PREFIX + "host-refused"
    title = "This host is not served here"


class ClientLeftError(ProblemError):
    """The client left before the answer; nobody gets this one, but it is counted by its status, nginx's."""

    status = 499
    type = _TYPE_PREFIX + "client-left"
    title = "The client has left"

    def __init__(self) -> None:
        """Tell so."""
        super().__init__("The connection was closed before the answer.")


class InvalidFieldsError(ProblemError):
    """The body is JSON, but fields of it are wrong; `errors` names every one."""

    status = 422
    type = _TYPE_PREFIX + "invalid-fields"
    title = "The request has wrong fields"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        """Tell each wrong field; the first is also the detail."""
        first = f"{errors[0].field} {errors[0].message}"
        super().__init__(first if len(errors) == 1 else f"{first} (and {len(errors) - 1} more, see errors)", errors)


class TooLargeHeadError(ProblemError):
    """The path and the headers are over the limit."""

    status = 431
    type = _TYPE_PREFIX + "too-large-head"
    title = "The path and the headers are too large"


class ModelUnavailableError(ProblemError):
    """No model can answer now."""

    status = 503
    type = _TYPE_PREFIX + "model-unavailable"
    title = "The model is not available"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}


class StorageUnavailableError(ProblemError):
    """What the request needs besides the model, the database or a file, is not there now."""

    status = 503
    type = _TYPE_PREFIX + "storage-unavailable"
    title = "The storage is not available"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}


class OverloadedError(ProblemError):
    """More is asked than can be answered in time."""

    status = 503
    type = _TYPE_PREFIX + "overloaded"
    title = "The service is full"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}

    def __init__(self, retry_after_s: float) -> None:
        """Tell when to ask again."""
        detail = "More is asked than can be answered in time; ask again later, as Retry-After says."
        super().__init__(detail, retry_after_s=retry_after_s)


class EndingError(ProblemError):
    """The service is ending, and takes no more requests."""

    status = 503
    type = _TYPE_PREFIX + "ending"
    title = "The service is ending"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1", "Connection": "close"}


class CallerLimitError(ProblemError):
    """The caller asks more than one caller may."""

    status = 429
    type = _TYPE_PREFIX + "caller-limit"
    title = "The caller is over its limit"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}

    def __init__(self, limit: str, retry_after_s: float) -> None:
        """Tell the limit, and when to ask again."""
        detail = f"One caller may ask {limit}; ask again later, as Retry-After says."
        super().__init__(detail, retry_after_s=retry_after_s)


REFUSALS = (CallerLimitError, OverloadedError, EndingError)
"""What every route may answer with, but those of health and metrics, before it looks at the request."""


class ModelTimeoutError(ProblemError):
    """The model did not answer in time."""

    status = 504
    type = _TYPE_PREFIX + "model-timeout"
    title = "The model did not answer in time"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}


class UnexpectedError(ProblemError):
    """A fault of ours, told to people on a page."""

    status = 500
    type = _NO_TYPE
    title = "Internal Server Error"


def answer_with_problems(app: FastAPI) -> None:
    """Have `app` answer every error, the framework's own among them, with a problem."""
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


async def _answer(_request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _http_response(error.status_code, _DETAILS.get(error.status_code, error.detail), error.headers)
    problem = as_problem(error)
    if problem is not None:
        return problem.response()
    # What an unexpected exception says is for the log, not for strangers. The server writes it there, and then closes
    # the connection: the client must know, or its next request is lost on it.
    return _http_response(500, "Something unexpected went wrong; the server's log has it.", {"Connection": "close"})


def as_problem(error: Exception) -> ProblemError | None:
    """The problem that an error is for a client; none where it is a fault of ours."""
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, TritonUnavailableError):
        return ModelUnavailableError("No version of the model can answer now; ask again in a second.")
    if isinstance(error, TritonTimeoutError):
        return ModelTimeoutError("The model did not answer within the time allowed; ask again, or with less text.")
    if isinstance(error, ClientDisconnect):
        return MalformedBodyError("The connection was closed before the body was complete.")
    if isinstance(error, RequestValidationError):
        return InvalidFieldsError(
            [FieldError(".".join(map(str, item["loc"])), f"is wrong: {item['msg']}") for item in error.errors()]
        )
    return None


def _http_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    return _response(status, _NO_TYPE, http.HTTPStatus(status).phrase, detail, (), headers or {})


def _response(
    status: int, type_: str, title: str, detail: str, errors: Sequence[FieldError], headers: Mapping[str, str]
) -> Response:
    body: dict[str, object] = {"type": type_, "title": title, "status": status, "detail": detail}
    if errors:
        body["errors"] = errors
    return Response(orjson.dumps(body), status, headers=headers, media_type=MEDIA_TYPE)
