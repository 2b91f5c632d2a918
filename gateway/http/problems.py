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
    headers: ClassVar[Mapping[str, str]]

    def __init_subclass__(cls, status: int, kind: str, title: str, **headers: str) -> None:
        """Set the class variables; `kind` ends the type's name, and `_` stands for `-` in the names of `headers`."""
        cls.status, cls.title, cls.type = status, title, _TYPE_PREFIX + kind if kind else NO_TYPE
        cls.headers = {name.replace("_", "-"): value for name, value in headers.items()}

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


class MalformedBodyError(ProblemError, status=400, kind="malformed-body", title="The body is not JSON"):
    """The body cannot be read as JSON."""


class MalformedRequestError(ProblemError, status=400, kind="malformed-request", title="The request is not HTTP"):
    """The received data is not valid HTTP."""


class KeyNeededError(
    ProblemError, status=401, kind="key-needed", title="An API key is needed", WWW_Authenticate="Bearer"
):
    """The route needs an API key, but the request has none or an unknown one."""


class KeyNotAllowedError(
    ProblemError, status=403, kind="key-not-allowed", title="The API key lacks the scope for this"
):
    """The API key is valid, but lacks the scope that the route needs."""


class RequestForgedError(ProblemError, status=403, kind="request-forged", title="The request comes from another site"):
    """The request does not come from a page of this gateway."""


class ActionNotConfirmedError(
    ProblemError, status=403, kind="action-not-confirmed", title="The API key is needed again"
):
    """A change came with only a session cookie, which a program on another port may have."""


class NotFoundError(ProblemError, status=404, kind="not-found", title="Not found"):
    """The resource at the path does not exist."""


class MethodNotAllowedError(ProblemError, status=405, kind="", title="Method Not Allowed"):
    """The path exists, but not for this method."""

    def __init__(self, detail: str, allowed: str) -> None:
        """Set the allowed methods, separated by commas."""
        super().__init__(detail)
        self.allowed = allowed

    def own_headers(self) -> Mapping[str, str]:
        """Return the allowed methods as a response header."""
        return {"Allow": self.allowed}


class RequestTimeoutError(ProblemError, status=408, kind="request-timeout", title="The request did not arrive in time"):
    """The request was sent too slowly."""


class ConflictError(ProblemError, status=409, kind="conflict", title="This is not possible now"):
    """The action is not possible in the current state."""


class TooLargeError(ProblemError, status=413, kind="too-large", title="The request is too large"):
    """The body is over the limit, in bytes or in texts."""


class UnsupportedMediaTypeError(
    ProblemError,
    status=415,
    kind="unsupported-media-type",
    title="The Content-Type is not JSON",
    Accept_Encoding="identity",
):
    """The body is not sent as plain `application/json`."""


class HostRefusedError(ProblemError, status=421, kind="host-refused", title="This host name is not accepted"):
    """The request was meant for another host."""


class ClientLeftError(ProblemError, status=499, kind="client-left", title="The client has disconnected"):
    """The client disconnected before the response. Nobody gets this problem; metrics count it by nginx's status 499."""


class InvalidFieldsError(ProblemError, status=422, kind="invalid-fields", title="The request has invalid fields"):
    """The body is JSON, but has wrong fields; `errors` lists them, or the first of many."""

    def __init__(self, errors: Sequence[FieldError], count: int = 0) -> None:
        """Report the first wrong fields, and how many of `count` are left out; the first field is also the detail."""
        count = max(count, len(errors))
        first = f"{errors[0].field} {errors[0].message}"
        # A line about a single omitted field would be as long as that field's own line.
        listed = list(errors[:MOST_ERRORS] if len(errors) > MOST_ERRORS + 1 else errors)
        if count > len(listed):
            listed.append(FieldError("body", f"has {count - len(listed):,} more wrong fields"))
        super().__init__(first if count == 1 else f"{first} (and {count - 1:,} more, see errors)", listed)


class TooLargeHeadError(
    ProblemError, status=431, kind="too-large-head", title="The path and the headers are too large"
):
    """The path and the headers are over the limit."""


class ModelUnavailableError(
    ProblemError, status=503, kind="model-unavailable", title="The model is not available", Retry_After="1"
):
    """No model can respond now."""


class StorageUnavailableError(
    ProblemError, status=503, kind="storage-unavailable", title="The storage is not available", Retry_After="5"
):
    """The database or a file that the request needs is not available now."""


class OverloadedError(ProblemError, status=503, kind="overloaded", title="The service is overloaded", Retry_After="1"):
    """The gateway gets more requests than it can handle in time."""

    def __init__(self, retry_after_s: float) -> None:
        """Set when to retry."""
        detail = "The service cannot finish this request in time. Retry after the seconds in Retry-After."
        super().__init__(detail, retry_after_s=retry_after_s)


class StorageFullError(
    ProblemError, status=503, kind="storage-full", title="There is no room for feedback", Retry_After="60"
):
    """No more feedback is stored from anyone until an operator makes room."""


class FeedbackQuotaError(
    ProblemError, status=429, kind="feedback-quota", title="The caller has sent too much feedback", Retry_After="3600"
):
    """The caller has sent as much feedback as an untrusted caller may."""


class EndingError(
    ProblemError, status=503, kind="ending", title="The service is shutting down", Retry_After="1", Connection="close"
):
    """The service is shutting down and accepts no more requests."""


class CallerLimitError(
    ProblemError, status=429, kind="caller-limit", title="The caller exceeds its rate limit", Retry_After="1"
):
    """The caller exceeds the rate limit per caller."""


class WrongKeysError(
    ProblemError, status=429, kind="wrong-keys", title="Too many wrong API keys", Retry_After="1", Connection="close"
):
    """Too many wrong keys came from one address. Valid keys are still accepted."""


REFUSALS = (CallerLimitError, WrongKeysError, OverloadedError, EndingError)
"""Problems that any route except health and metrics may respond with before it reads the request."""


class ModelTimeoutError(
    ProblemError, status=504, kind="model-timeout", title="The model did not respond in time", Retry_After="1"
):
    """The model did not respond in time."""


class UnexpectedError(ProblemError, status=500, kind="", title="Internal Server Error"):
    """An internal error, shown on a console page."""


def problem_response(
    status: int, type_: str, title: str, detail: str, errors: Sequence[FieldError], headers: Mapping[str, str]
) -> Response:
    """Build the response of a problem."""
    body: dict[str, object] = {"type": type_, "title": title, "status": status, "detail": detail}
    if errors:
        body["errors"] = errors
    return Response(orjson.dumps(body), status, headers=headers, media_type=MEDIA_TYPE)
