"""The routes that have a version tried on live texts, and tell on which texts it differs."""

from fastapi import Request, Response

from gateway.admin import VERSION, WHOLE_NUMBER, in_thread, json_answer, path_number, route, whole_number
from gateway.deps import get_loop
from gateway.openapi import parameter
from gateway.problems import ConflictError, InvalidFieldsError, NotFoundError
from gateway.schemas import Difference, Release
from lifecycle import release
from storage import releases

_LIMIT = {**WHOLE_NUMBER, "maximum": releases.MOST_DIFFERENCES, "default": 100}


async def shadow(request: Request) -> Response:
    """Put a share of the live texts to a version too, which answers nobody."""
    return await _try(request, releases.SHADOW)


async def canary(request: Request) -> Response:
    """Have a version answer a growing share of the live texts, and serve if it does well; a shadow can go on so."""
    return await _try(request, releases.CANARY)


async def stop(request: Request) -> Response:
    """End the shadow or the canary of a version; no request fails meanwhile."""
    loop = get_loop(request)
    version = path_number(request, "version")
    ended = await in_thread(lambda: release.stop(loop.storage.open(), version, "by request"))
    return json_answer(releases.as_json(ended))


async def list_differences(request: Request) -> Response:
    """The live texts to which a version gave another label than the one that served, when it was tried last."""
    loop = get_loop(request)
    version = path_number(request, "version")
    limit = whole_number(request, "limit", 100, releases.MOST_DIFFERENCES)

    found = await in_thread(lambda: releases.differences_of(loop.storage.open(), version, limit))
    if found is None:
        raise NotFoundError(f"Version {version} was never tried on live texts.")
    return json_answer([releases.difference_as_json(item) for item in found])


async def _try(request: Request, mode: releases.Mode) -> Response:
    loop = get_loop(request)
    version = path_number(request, "version")
    begun = await in_thread(lambda: release.start(loop.settings, loop.storage.open(), version, mode, "by request"))
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
            (shadow, "Try a version in the shadow"),
            (canary, "Have a version answer some live texts"),
            (stop, "End the trial of a version"),
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
        parameters=[VERSION, parameter("query", "limit", _LIMIT, "How many.")],
    ),
]
