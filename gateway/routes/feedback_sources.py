"""The routes that list stored feedback and its sources, put sources into quarantine, and withdraw rows."""

from collections.abc import Callable
from typing import TypeVar

from fastapi import Request, Response

from common.errors import PipelineError
from gateway.http.problems import FieldError, InvalidFieldsError, NotFoundError
from gateway.http.schemas import FeedbackSource, StoredFeedback, Withdrawn
from gateway.routes.admin import LATEST, WHOLE_NUMBER, in_thread, json_answer, parse_number, route, whole_number
from gateway.routes.context import get_context
from gateway.routes.openapi import Json, parameter
from storage import feedback_sources, withdrawal
from storage.api_keys import Scope
from storage.database import Database
from storage.feedback import newest_rows

MOST_ROWS = 1_000
_REASON = "by request"

Result = TypeVar("Result")


async def list_feedback(request: Request) -> Response:
    """Stored feedback with its texts, the newest row first, including withdrawn rows."""
    app = get_context(request)
    limit = whole_number(request, "limit", 100, MOST_ROWS)
    before = whole_number(request, "before", 0, LATEST) or None
    source = _source(request)
    return json_answer(await in_thread(lambda: newest_rows(app.storage.open(), limit, source, before)))


async def list_sources(request: Request) -> Response:
    """All sources of feedback, with their rows, and whether they are trusted or in quarantine."""
    app = get_context(request)
    trusted = app.settings.trusted_sources
    return json_answer(await in_thread(lambda: feedback_sources.list_sources(app.storage.open(), trusted)))


async def quarantine_source(request: Request) -> Response:
    """Exclude a source from training and evaluation until it is released."""
    return await _change(request, lambda database, source: feedback_sources.quarantine(database, source, _REASON))


async def release_source(request: Request) -> Response:
    """End the quarantine of a source. Only rows that it sends from now on can put it back."""
    return await _change(request, lambda database, source: feedback_sources.release(database, source, _REASON))


async def withdraw_feedback(request: Request) -> Response:
    """Exclude a row, or all rows of a source, from training and evaluation for good. `erase` also deletes the texts."""
    given = request.query_params
    source = _source(request)
    erase = given.get("erase", "false")
    id_ = parse_number(given["id"]) if "id" in given else None
    faults = []
    if ("id" in given) == (source is not None):
        faults.append(FieldError("id", "or source is needed, and not both"))
    elif "id" in given and id_ is None:
        faults.append(FieldError("id", f"is {given['id'][:50]!r}; a whole number is needed"))
    if erase not in ("true", "false"):
        faults.append(FieldError("erase", f"is {erase[:50]!r}; true or false is needed"))
    if faults:
        raise InvalidFieldsError(faults)
    app = get_context(request)

    def withdraw() -> int:
        database = app.storage.open()
        if id_ is not None:
            return _known(lambda: withdrawal.withdraw_row(database, id_, erase == "true", _REASON))
        return _known(lambda: withdrawal.withdraw_source(database, source or "", erase == "true", _REASON))

    return json_answer({"withdrawn": await in_thread(withdraw)})


def _source(request: Request) -> str | None:
    source = request.query_params.get("source")
    if source == "":
        raise InvalidFieldsError([FieldError("source", "is empty; GET /feedback/sources lists the sources")])
    return source


async def _change(request: Request, change: Callable[[Database, str], None]) -> Response:
    source = _source(request)
    if source is None:
        raise InvalidFieldsError([FieldError("source", "is missing; GET /feedback/sources lists the sources")])
    app = get_context(request)

    def do() -> Json:
        database = app.storage.open()
        _known(lambda: change(database, source))
        found = feedback_sources.list_sources(database, app.settings.trusted_sources)
        return next(item for item in found if item["source"] == source)

    return json_answer(await in_thread(do))


def _known(do: Callable[[], Result]) -> Result:
    """Run `do` on a source or a row; a PipelineError becomes a NotFoundError."""
    try:
        return do()
    except PipelineError as error:
        raise NotFoundError(str(error)) from error


_SOURCE = parameter(
    "query",
    "source",
    {"type": "string", "minLength": 1},
    "A source as listed by GET /feedback/sources, such as key:website.",
)
_LIMIT = parameter("query", "limit", {**WHOLE_NUMBER, "maximum": MOST_ROWS, "default": 100}, "Maximum number.")
_BEFORE = parameter("query", "before", {**WHOLE_NUMBER, "maximum": LATEST}, "Only rows with a smaller id than this.")
_ID = parameter("query", "id", WHOLE_NUMBER, "The id of one row.")
_ERASE = parameter("query", "erase", {"type": "boolean", "default": False}, "Also delete the texts.")

routes = [
    route(
        "GET",
        "/feedback",
        list_feedback,
        "Stored feedback",
        list[StoredFeedback],
        InvalidFieldsError,
        parameters=[_SOURCE, _LIMIT, _BEFORE],
        scope=Scope.TEXTS,
    ),
    route("GET", "/feedback/sources", list_sources, "Sources of feedback", list[FeedbackSource]),
    *(
        route(
            "POST",
            f"/feedback/sources/{name}",
            endpoint,
            summary,
            FeedbackSource,
            InvalidFieldsError,
            NotFoundError,
            parameters=[{**_SOURCE, "required": True}],
        )
        for name, endpoint, summary in (
            ("quarantine", quarantine_source, "Quarantine a source"),
            ("release", release_source, "End the quarantine of a source"),
        )
    ),
    route(
        "POST",
        "/feedback/withdraw",
        withdraw_feedback,
        "Withdraw feedback",
        Withdrawn,
        InvalidFieldsError,
        NotFoundError,
        parameters=[_ID, _SOURCE, _ERASE],
    ),
]
