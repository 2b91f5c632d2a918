"""The routes for versions, checks, retrainings and events. Changes need an admin key."""

import asyncio
import logging
import time
import types
from collections.abc import Callable, Sequence
from typing import TypeVar

import orjson
from fastapi import Request, Response
from sqlalchemy.exc import SQLAlchemyError

from common.errors import PipelineError
from gateway.http.problems import (
    REFUSALS,
    ConflictError,
    FieldError,
    InvalidFieldsError,
    NotFoundError,
    ProblemError,
    StorageUnavailableError,
)
from gateway.http.schemas import Event, Job, Model, Serving
from gateway.routes.context import get_context
from gateway.routes.direct_route import DirectRoute, Endpoint
from gateway.routes.openapi import Json, parameter, problem_responses
from lifecycle.deployment import promotion
from lifecycle.deployment.version_report import describe_models, without_texts
from storage import events, jobs, tables
from storage.api_keys import Scope
from storage.database import Database

CHECK_WAIT_S = 30.0
"""Seconds to wait for the results of a check. If it takes longer, the response is the unfinished job."""
MOST_EVENTS = 1_000
_POLL_S = 0.2
_LARGEST_ID = 2**63 - 1
LATEST = 2**62
"""Maximum value of the query parameter `before`: an id of an event or of a row of feedback."""

log = logging.getLogger(__name__)

Result = TypeVar("Result")


async def list_models(request: Request) -> Response:
    """Every version with its metrics, the results of its gates, and when it was deployed.

    Gate results include texts of the validation file only for a key with the scope `texts`.
    """
    app = get_context(request)
    models = await in_thread(lambda: describe_models(app.settings, app.storage.open()))
    return json_answer(models if Scope.TEXTS in request.scope["state"]["scopes"] else without_texts(models))


async def promote(request: Request) -> Response:
    """Deploy a version, whatever the gates said about it. No request fails meanwhile."""
    app = get_context(request)
    version = path_number(request, "version")
    await in_thread(lambda: promotion.promote(app.settings, app.storage.open(), version, "by request"))
    return json_answer({"version": version})


async def roll_back(request: Request) -> Response:
    """Deploy the previous version again. No request fails meanwhile."""
    app = get_context(request)
    return json_answer(
        {"version": await in_thread(lambda: promotion.roll_back(app.settings, app.storage.open(), "by request"))}
    )


async def check(request: Request) -> Response:
    """Evaluate the deployed model. The response contains the results, unless they take over half a minute."""
    app = get_context(request)
    job = await in_thread(lambda: jobs.enqueue(app.storage.open(), jobs.CHECK, "by request"))
    number = job.id
    deadline = time.monotonic() + CHECK_WAIT_S
    while job.ended_at is None and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_S)
        found = await in_thread(lambda: jobs.get(app.storage.open(), number))
        job = found or job
    return json_answer(jobs.as_json(job), 200 if job.ended_at else 202)


async def retrain(request: Request) -> Response:
    """Request a retraining. The response is the job; `GET /jobs/{job}` shows its progress."""
    app = get_context(request)
    job = await in_thread(lambda: jobs.enqueue(app.storage.open(), jobs.RETRAIN, "by request"))
    return json_answer(jobs.as_json(job), 202, {"Location": f"/jobs/{job.id}"})


async def get_job(request: Request) -> Response:
    """The progress or result of a check or a retraining."""
    return await _answer_job(request, jobs.get)


async def cancel_job(request: Request) -> Response:
    """Cancel a job. A job that is already promoting finishes the promotion first."""
    return await _answer_job(request, jobs.request_cancel)


async def list_events(request: Request) -> Response:
    """What the pipeline did, and why, the newest first."""
    app = get_context(request)
    limit = whole_number(request, "limit", 100, MOST_EVENTS)
    before = whole_number(request, "before", 0, LATEST)
    kind = request.query_params.get("kind")
    kinds = [known.value for known in events.EventKind]
    if kind is not None and kind not in kinds:
        raise InvalidFieldsError([FieldError("kind", f"is not a kind of event; use one of {', '.join(kinds)}")])
    found = await in_thread(lambda: events.newest(app.storage.open(), limit, kind, before or None))
    return json_answer([events.as_json(event) for event in found])


async def _answer_job(request: Request, find: Callable[[Database, int], tables.Job | None]) -> Response:
    app = get_context(request)
    number = path_number(request, "job")
    job = await in_thread(lambda: find(app.storage.open(), number))
    if job is None:
        raise NotFoundError(f"There is no job {number}.")
    return json_answer(jobs.as_json(job))


def path_number(request: Request, name: str) -> int:
    """Return the path parameter `name` as a number.

    Raises:
        NotFoundError: the parameter is not a number.
    """
    number = parse_number(request.path_params[name])
    if number is None:
        raise NotFoundError(f"There is no {name} {request.path_params[name][:50]!r}.")
    return number


def whole_number(request: Request, name: str, default: int, most: int) -> int:
    """Return the query parameter `name` as a number from 1 to `most`, or `default` if it is missing.

    Raises:
        InvalidFieldsError: the parameter is not such a number.
    """
    given = request.query_params.get(name)
    if given is None:
        return default
    number = parse_number(given)
    if number is None or not 1 <= number <= most:
        raise InvalidFieldsError([FieldError(name, f"is {given[:50]!r}; a whole number from 1 to {most:,} is needed")])
    return number


def parse_number(text: str) -> int | None:
    """Return a number that fits the database, or None. `int` accepts other scripts' digits and fails on thousands."""
    if not text.isascii() or not text.isdecimal() or len(text) > len(str(_LARGEST_ID)) or int(text) > _LARGEST_ID:
        return None
    return int(text)


async def in_thread(work: Callable[[], Result]) -> Result:
    """Run `work`, which waits for the database or Triton, in a thread, and convert its errors to problems."""
    try:
        return await asyncio.to_thread(work)
    except promotion.UnknownVersionError as error:
        raise NotFoundError(str(error)) from error
    except promotion.DeploymentError as error:
        log.warning("%s", error)
        raise ConflictError(str(error)) from error
    except (PipelineError, SQLAlchemyError) as error:
        log.error("A request failed: %s", error)
        raise StorageUnavailableError("The database or a file is not available now; see the server's log.") from error


def json_answer(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON response with `value`."""
    return Response(orjson.dumps(value), status, headers=headers, media_type="application/json")


_DESCRIPTIONS = {200: "Done.", 202: "Requested; the job shows the progress."}


def route(
    method: str,
    path: str,
    endpoint: Endpoint,
    summary: str,
    model: type | types.GenericAlias,
    *problems: type[ProblemError],
    parameters: Sequence[Json] = (),
    statuses: Sequence[int] = (200,),
    scope: Scope | None = None,
) -> DirectRoute:
    """Create a route with its OpenAPI description. The default scope is `read`, or `admin` for POST."""
    return DirectRoute(
        path,
        endpoint,
        scope=scope or (Scope.ADMIN if method == "POST" else Scope.READ),
        method=method,
        status_code=statuses[0],
        summary=summary,
        openapi_extra={"parameters": list(parameters)},
        responses={
            **{status: {"model": model, "description": _DESCRIPTIONS[status]} for status in statuses},
            **problem_responses(*problems, StorageUnavailableError, *REFUSALS),
        },
    )


WHOLE_NUMBER = {"type": "integer", "minimum": 1, "maximum": _LARGEST_ID}
VERSION = parameter("path", "version", WHOLE_NUMBER, required=True)
_JOB = parameter("path", "job", WHOLE_NUMBER, required=True)
_EVENTS = (
    parameter("query", "limit", {**WHOLE_NUMBER, "maximum": MOST_EVENTS, "default": 100}, "Maximum number."),
    parameter("query", "before", {**WHOLE_NUMBER, "maximum": LATEST}, "Only events with a smaller id than this."),
    parameter(
        "query", "kind", {"type": "string", "enum": [kind.value for kind in events.EventKind]}, "The kind of events."
    ),
)

routes = [
    route("GET", "/models", list_models, "All versions", list[Model]),
    route(
        "POST",
        "/models/{version}/promote",
        promote,
        "Deploy a version",
        Serving,
        NotFoundError,
        ConflictError,
        parameters=[VERSION],
    ),
    route("POST", "/models/rollback", roll_back, "Roll back to the previous version", Serving, ConflictError),
    route("POST", "/check", check, "Evaluate the deployed model", Job, statuses=(200, 202)),
    route("POST", "/retrain", retrain, "Retrain", Job, statuses=(202,)),
    route("GET", "/jobs/{job}", get_job, "Progress of a job", Job, NotFoundError, parameters=[_JOB]),
    route("POST", "/jobs/{job}/cancel", cancel_job, "Cancel a job", Job, NotFoundError, parameters=[_JOB]),
    route("GET", "/events", list_events, "Events", list[Event], InvalidFieldsError, parameters=_EVENTS),
]
