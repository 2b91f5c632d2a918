"""The routes of the loop: versions, checks, retrainings, events. What changes something needs an admin's key."""

import asyncio
import logging
import time
import types
from collections.abc import Callable, Sequence
from typing import TypeVar

import orjson
from fastapi import Request, Response
from sqlalchemy.exc import SQLAlchemyError

from errors import PipelineError
from gateway.deps import DirectRoute, Endpoint, get_loop
from gateway.openapi import Json, parameter, problem_responses
from gateway.problems import (
    REFUSALS,
    ConflictError,
    FieldError,
    InvalidFieldsError,
    NotFoundError,
    ProblemError,
    StorageUnavailableError,
)
from gateway.schemas import Event, Job, Model, Serving
from lifecycle import promotion
from lifecycle.models import describe_models
from storage import events, jobs, tables
from storage.api_keys import Scope
from storage.database import Database

CHECK_WAIT_S = 30.0
"""For the figures of a check; one that takes longer is answered with the job, to ask again."""
MOST_EVENTS = 1_000
_POLL_S = 0.2
_LARGEST_ID = 2**63 - 1
_LATEST = 2**62
"""The largest id of an event that older ones can be asked for."""

log = logging.getLogger(__name__)

Result = TypeVar("Result")


async def list_models(request: Request) -> Response:
    """Every version with its metrics, the gates' verdicts, and when it served."""
    loop = get_loop(request)
    return json_answer(await in_thread(lambda: describe_models(loop.settings, loop.storage.open())))


async def promote(request: Request) -> Response:
    """Have a version serve, whatever the gates said of it; no request fails meanwhile."""
    loop = get_loop(request)
    version = path_number(request, "version")
    await in_thread(lambda: promotion.promote(loop.settings, loop.storage.open(), version, "by request"))
    return json_answer({"version": version})


async def roll_back(request: Request) -> Response:
    """Have the version serve that did before; no request fails meanwhile."""
    loop = get_loop(request)
    return json_answer(
        {"version": await in_thread(lambda: promotion.roll_back(loop.settings, loop.storage.open(), "by request"))}
    )


async def check(request: Request) -> Response:
    """Ask what is served how good it is now; the answer has the figures, unless they take over half a minute."""
    loop = get_loop(request)
    job = await in_thread(lambda: jobs.enqueue(loop.storage.open(), jobs.CHECK, "by request"))
    number = job.id
    deadline = time.monotonic() + CHECK_WAIT_S
    while job.ended_at is None and time.monotonic() < deadline:
        await asyncio.sleep(_POLL_S)
        found = await in_thread(lambda: jobs.get(loop.storage.open(), number))
        job = found or job
    return json_answer(jobs.as_json(job), 200 if job.ended_at else 202)


async def retrain(request: Request) -> Response:
    """Ask for a retraining; the answer is the job, to be asked for how it goes."""
    loop = get_loop(request)
    job = await in_thread(lambda: jobs.enqueue(loop.storage.open(), jobs.RETRAIN, "by request"))
    return json_answer(jobs.as_json(job), 202, {"Location": f"/jobs/{job.id}"})


async def get_job(request: Request) -> Response:
    """How a check or a retraining goes, or went."""
    return await _answer_job(request, jobs.get)


async def cancel_job(request: Request) -> Response:
    """Have a job end; one that is promoting already does so first."""
    return await _answer_job(request, jobs.request_cancel)


async def list_events(request: Request) -> Response:
    """What the loop did, and why, the newest first."""
    loop = get_loop(request)
    limit = whole_number(request, "limit", 100, MOST_EVENTS)
    before = whole_number(request, "before", 0, _LATEST)
    kind = request.query_params.get("kind")
    kinds = [known.value for known in events.EventKind]
    if kind is not None and kind not in kinds:
        raise InvalidFieldsError([FieldError("kind", f"is no kind of event; it is one of {', '.join(kinds)}")])
    found = await in_thread(lambda: events.newest(loop.storage.open(), limit, kind, before or None))
    return json_answer([events.as_json(event) for event in found])


async def _answer_job(request: Request, find: Callable[[Database, int], tables.Job | None]) -> Response:
    loop = get_loop(request)
    number = path_number(request, "job")
    job = await in_thread(lambda: find(loop.storage.open(), number))
    if job is None:
        raise NotFoundError(f"There is no job {number}.")
    return json_answer(jobs.as_json(job))


def path_number(request: Request, name: str) -> int:
    """A number of the path.

    Raises:
        NotFoundError: it is none.
    """
    number = parse_number(request.path_params[name])
    if number is None:
        raise NotFoundError(f"There is no {name} {request.path_params[name][:50]!r}.")
    return number


def whole_number(request: Request, name: str, default: int, most: int) -> int:
    """A number of the query, from 1 to `most`.

    Raises:
        InvalidFieldsError: it is none.
    """
    given = request.query_params.get(name)
    if given is None:
        return default
    number = parse_number(given)
    if number is None or not 1 <= number <= most:
        raise InvalidFieldsError([FieldError(name, f"is {given[:50]!r}; a whole number from 1 to {most:,} is needed")])
    return number


def parse_number(text: str) -> int | None:
    """A number that the database can hold; `int` takes other scripts' digits, and fails on thousands of them."""
    if not text.isascii() or not text.isdecimal() or len(text) > len(str(_LARGEST_ID)) or int(text) > _LARGEST_ID:
        return None
    return int(text)


async def in_thread(work: Callable[[], Result]) -> Result:
    """Do what waits for the database or for Triton where it holds up no request."""
    try:
        return await asyncio.to_thread(work)
    except promotion.UnknownVersionError as error:
        raise NotFoundError(str(error)) from error
    except promotion.DeploymentError as error:
        log.warning("%s", error)
        raise ConflictError(str(error)) from error
    except (PipelineError, SQLAlchemyError) as error:
        log.error("A request could not be answered: %s", error)
        raise StorageUnavailableError("What this needs cannot be used now; the server's log says why.") from error


def json_answer(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Answer with `value`."""
    return Response(orjson.dumps(value), status, headers=headers, media_type="application/json")


_DESCRIPTIONS = {200: "Done.", 202: "Asked for; the job tells how it goes."}


def route(
    method: str,
    path: str,
    endpoint: Endpoint,
    summary: str,
    model: type | types.GenericAlias,
    *problems: type[ProblemError],
    parameters: Sequence[Json] = (),
    statuses: Sequence[int] = (200,),
) -> DirectRoute:
    """A route of the loop, with what the API's description says of it."""
    return DirectRoute(
        path,
        endpoint,
        scope=Scope.ADMIN if method == "POST" else Scope.READ,
        methods=[method],
        status_code=statuses[0],
        operation_id=endpoint.__name__,
        summary=summary,
        tags=["loop"],
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
    parameter("query", "limit", {**WHOLE_NUMBER, "maximum": MOST_EVENTS, "default": 100}, "How many."),
    parameter(
        "query", "before", {**WHOLE_NUMBER, "maximum": _LATEST}, "The id of an event that older ones are asked for."
    ),
    parameter(
        "query", "kind", {"type": "string", "enum": [kind.value for kind in events.EventKind]}, "Only of a kind."
    ),
)

routes = [
    route("GET", "/models", list_models, "Every version", list[Model]),
    route(
        "POST",
        "/models/{version}/promote",
        promote,
        "Have a version serve",
        Serving,
        NotFoundError,
        ConflictError,
        parameters=[VERSION],
    ),
    route("POST", "/models/rollback", roll_back, "Go back to the version before", Serving, ConflictError),
    route("POST", "/check", check, "Is what serves good?", Job, statuses=(200, 202)),
    route("POST", "/retrain", retrain, "Learn anew", Job, statuses=(202,)),
    route("GET", "/jobs/{job}", get_job, "How a job goes", Job, NotFoundError, parameters=[_JOB]),
    route("POST", "/jobs/{job}/cancel", cancel_job, "End a job", Job, NotFoundError, parameters=[_JOB]),
    route("GET", "/events", list_events, "What the loop did", list[Event], InvalidFieldsError, parameters=_EVENTS),
]
