"""All errors that clients can get, as RFC 9457 problems."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import orjson
from fastapi import Response

MEDIA_TYPE = "application/problem+json"
_TYPE_PREFIX = "urn:sentiment:problem:"
NO_TYPE = "about:blank"
"""Type of a problem that means no more than its HTTP status (RFC 9457, section 4.2.1)."""

MOST_ERRORS = 20
"""Maximum wrong fields listed in a response; the others are only counted."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """The fault of one field of a request, and what is needed instead."""

    field: str
    """The field's place in the body, such as `texts[3]`, or `body` for the whole body."""
    message: str


class ProblemError(Exception):
    """A problem to report to the client. Each subclass is one kind; clients may rely on its `type`."""

    status: ClassVar[int]
    type: ClassVar[str]
    title: ClassVar[str]
    headers: ClassVar[Mapping[str, str]] = {}

    def __init__(self, detail: str, errors: Sequence[FieldError] = (), retry_after_s: float | None = None) -> None:
        """Take `detail`, a sentence about this occurrence, the wrong fields, and the seconds before a retry."""
        super().__init__(detail)
        self.detail = detail
        self.errors = errors
        self.retry_after_s = retry_after_s

    def own_headers(self) -> Mapping[str, str]:
        """Return the response headers for this occurrence."""
        if self.retry_after_s is None:
            return self.headers
        return {**self.headers, "Retry-After": str(max(1, math.ceil(self.retry_after_s)))}

    def response(self) -> Response:
        """Build the response."""
        return problem_response(self.status, self.type, self.title, self.detail, self.errors, self.own_headers())


class MalformedBodyError(ProblemError):
    """The body cannot be read as JSON."""

    status = 400
    type = _TYPE_PREFIX + "malformed-body"
    title = "The body is not JSON"


class MalformedRequestError(ProblemError):
    """The received data is not valid HTTP."""

    status = 400
    type = _TYPE_PREFIX + "malformed-request"
    title = "The request is not HTTP"


class KeyNeededError(ProblemError):
    """The route needs an API key, but the request has none or an unknown one."""

    status = 401
    type = _TYPE_PREFIX + "key-needed"
    title = "An API key is needed"
    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class KeyNotAllowedError(ProblemError):
    """The API key is valid, but lacks the scope that the route needs."""

    status = 403
    type = _TYPE_PREFIX + "key-not-allowed"
    title = "The API key lacks the scope for this"


class RequestForgedError(ProblemError):
    """The request does not come from a page of this gateway."""

    status = 403
    type = _TYPE_PREFIX + "request-forged"
    title = "The request comes from another site"


class ActionNotConfirmedError(ProblemError):
    """A change came with only a session cookie, which a program on another port may have."""

    status = 403
    type = _TYPE_PREFIX + "action-not-confirmed"
    title = "The API key is needed again"

    def __init__(self) -> None:
        """Set the detail."""
        super().__init__("This page has no valid action token of your session. Enter the key that you signed in with.")


class NotFoundError(ProblemError):
    """The resource at the path does not exist."""

    status = 404
    type = _TYPE_PREFIX + "not-found"
    title = "Not found"


class RequestTimeoutError(ProblemError):
    """The request was sent too slowly."""

    status = 408
    type = _TYPE_PREFIX + "request-timeout"
    title = "The request did not arrive in time"


class ConflictError(ProblemError):
    """The action is not possible in the current state."""

    status = 409
    type = _TYPE_PREFIX + "conflict"
    title = "This is not possible now"


class TooLargeError(ProblemError):
    """The body is over the limit, in bytes or in texts."""

    status = 413
    type = _TYPE_PREFIX + "too-large"
    title = "The request is too large"


class UnsupportedMediaTypeError(ProblemError):
    """The body is not sent as plain `application/json`."""

    status = 415
    type = _TYPE_PREFIX + "unsupported-media-type"
    title = "The Content-Type is not JSON"
    headers: ClassVar[Mapping[str, str]] = {"Accept-Encoding": "identity"}


class HostRefusedError(ProblemError):
    """The request was meant for another host."""

    status = 421
    type = _TYPE_PREFIX + "host-refused"
    title = "This host name is not accepted"


class ClientLeftError(ProblemError):
    """The client disconnected before the response. Nobody gets this problem; metrics count it by nginx's status 499."""

    status = 499
    type = _TYPE_PREFIX + "client-left"
    title = "The client has disconnected"

    def __init__(self) -> None:
        """Set the detail."""
        super().__init__("The connection was closed before the response.")


class InvalidFieldsError(ProblemError):
    """The body is JSON, but has wrong fields; `errors` lists them, or the first of many."""

    status = 422
    type = _TYPE_PREFIX + "invalid-fields"
    title = "The request has invalid fields"

    def __init__(self, errors: Sequence[FieldError], count: int = 0) -> None:
        """Report the first wrong fields, and how many of `count` are left out; the first field is also the detail."""
        count = max(count, len(errors))
        first = f"{errors[0].field} {errors[0].message}"
        # A line about a single omitted field would be as long as that field's own line.
        listed = list(errors[:MOST_ERRORS] if len(errors) > MOST_ERRORS + 1 else errors)
        if count > len(listed):
            listed.append(FieldError("body", f"has {count - len(listed):,} more wrong fields"))
        super().__init__(first if count == 1 else f"{first} (and {count - 1:,} more, see errors)", listed)


class TooLargeHeadError(ProblemError):
    """The path and the headers are over the limit."""

    status = 431
    type = _TYPE_PREFIX + "too-large-head"
    title = "The path and the headers are too large"


class ModelUnavailableError(ProblemError):
    """No model can respond now."""

    status = 503
    type = _TYPE_PREFIX + "model-unavailable"
    title = "The model is not available"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}


class StorageUnavailableError(ProblemError):
    """The database or a file that the request needs is not available now."""

    status = 503
    type = _TYPE_PREFIX + "storage-unavailable"
    title = "The storage is not available"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "5"}


class OverloadedError(ProblemError):
    """The gateway gets more requests than it can handle in time."""

    status = 503
    type = _TYPE_PREFIX + "overloaded"
    title = "The service is overloaded"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}

    def __init__(self, retry_after_s: float) -> None:
        """Set when to retry."""
        detail = "The service cannot finish this request in time. Retry after the seconds in Retry-After."
        super().__init__(detail, retry_after_s=retry_after_s)


class StorageFullError(ProblemError):
    """No more feedback is stored from anyone until an operator makes room."""

    status = 503
    type = _TYPE_PREFIX + "storage-full"
    title = "There is no room for feedback"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "60"}


class FeedbackQuotaError(ProblemError):
    """The caller has sent as much feedback as an untrusted caller may."""

    status = 429
    type = _TYPE_PREFIX + "feedback-quota"
    title = "The caller has sent too much feedback"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "3600"}


class EndingError(ProblemError):
    """The service is shutting down and accepts no more requests."""

    status = 503
    type = _TYPE_PREFIX + "ending"
    title = "The service is shutting down"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1", "Connection": "close"}


class CallerLimitError(ProblemError):
    """The caller exceeds the rate limit per caller."""

    status = 429
    type = _TYPE_PREFIX + "caller-limit"
    title = "The caller exceeds its rate limit"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}

    def __init__(self, limit: str, retry_after_s: float) -> None:
        """Set the limit, and when to retry."""
        detail = f"The limit per caller is {limit}. Retry after the seconds in Retry-After."
        super().__init__(detail, retry_after_s=retry_after_s)


class WrongKeysError(ProblemError):
    """Too many wrong keys came from one address. Valid keys are still accepted."""

    status = 429
    type = _TYPE_PREFIX + "wrong-keys"
    title = "Too many wrong API keys"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1", "Connection": "close"}

    def __init__(self, retry_after_s: float) -> None:
        """Set when the next wrong key gets status 401 again."""
        detail = "Too many wrong API keys came from this address. A valid key is accepted at any time."
        super().__init__(detail, retry_after_s=retry_after_s)


REFUSALS = (CallerLimitError, WrongKeysError, OverloadedError, EndingError)
"""Problems that any route except health and metrics may respond with before it reads the request."""


class ModelTimeoutError(ProblemError):
    """The model did not respond in time."""

    status = 504
    type = _TYPE_PREFIX + "model-timeout"
    title = "The model did not respond in time"
    headers: ClassVar[Mapping[str, str]] = {"Retry-After": "1"}


class UnexpectedError(ProblemError):
    """An internal error, shown on a console page."""

    status = 500
    type = NO_TYPE
    title = "Internal Server Error"


def problem_response(
    status: int, type_: str, title: str, detail: str, errors: Sequence[FieldError], headers: Mapping[str, str]
) -> Response:
    """Build the response of a problem."""
    body: dict[str, object] = {"type": type_, "title": title, "status": status, "detail": detail}
    if errors:
        body["errors"] = errors
    return Response(orjson.dumps(body), status, headers=headers, media_type=MEDIA_TYPE)
