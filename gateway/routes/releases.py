"""The routes to start and end shadow and canary releases, and to list the texts on which the versions differ."""

from fastapi import Request, Response

from gateway.http.problems import ConflictError, InvalidFieldsError, NotFoundError
from gateway.http.schemas import Difference, Release
from gateway.routes.admin import VERSION, WHOLE_NUMBER, in_thread, json_answer, path_number, route, whole_number
from gateway.routes.context import get_context
from gateway.routes.openapi import parameter
from lifecycle.canary import release
from storage import releases
from storage.api_keys import Scope

_LIMIT = {**WHOLE_NUMBER, "maximum": releases.MOST_DIFFERENCES, "default": 100}


async def shadow(request: Request) -> Response:
    """Start a shadow release: a version also classifies a share of the live texts. No client gets its predictions."""
    return await _try(request, releases.SHADOW)


async def canary(request: Request) -> Response:
    """Start a canary, also from a shadow. The version answers a growing share of live texts, then is promoted."""
    return await _try(request, releases.CANARY)


async def stop(request: Request) -> Response:
    """End the shadow or canary release of a version. No request fails meanwhile."""
    app = get_context(request)
    version = path_number(request, "version")
    ended = await in_thread(lambda: release.stop(app.storage.open(), version, "by request"))
    return json_answer(releases.as_json(ended))


async def list_differences(request: Request) -> Response:
    """Live texts that a version labelled differently from the deployed one, in its last release."""
    app = get_context(request)
    version = path_number(request, "version")
    limit = whole_number(request, "limit", 100, releases.MOST_DIFFERENCES)

    found = await in_thread(lambda: releases.differences_of(app.storage.open(), version, limit))
    if found is None:
        raise NotFoundError(f"Version {version} never had a shadow or canary.")
    return json_answer([releases.difference_as_json(item) for item in found])


async def _try(request: Request, mode: releases.Mode) -> Response:
    app = get_context(request)
    version = path_number(request, "version")
    begun = await in_thread(lambda: release.start(app.settings, app.storage.open(), version, mode, "by request"))
    return json_answer(releases.as_json(begun))


routes = [
    *(
        route(
            "POST",
            f"/models/{{version}}/{endpoint.__name__}",
            endpoint,
            summary,
            Release,
            NotFoundError,
            ConflictError,
            parameters=[VERSION],
        )
        for endpoint, summary in (
            (shadow, "Start a shadow release"),
            (canary, "Start a canary release"),
            (stop, "End a release"),
        )
    ),
    route(
        "GET",
        "/models/{version}/differences",
        list_differences,
        "Live texts that two versions label differently",
        list[Difference],
        NotFoundError,
        InvalidFieldsError,
        parameters=[VERSION, parameter("query", "limit", _LIMIT, "Maximum number.")],
        scope=Scope.TEXTS,
    ),
]
