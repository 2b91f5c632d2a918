"""What changes something: each says first what will happen, and then needs the admin's scope to be done."""

from collections.abc import Awaitable, Callable

from fastapi import Response

from gateway.admin import in_thread, parse_number
from gateway.console.versions import PATH as VERSIONS
from gateway.console.views import Endpoint, Visit, view
from gateway.problems import ConflictError, FieldError, InvalidFieldsError, NotFoundError
from lifecycle import promotion, release
from lifecycle.models import describe_models
from storage import jobs, releases
from storage.api_keys import Scope

CONFIRM_PATH = "/console/confirm"
REASON = "by the console"
"""With the name of the key, in the events."""
_SEE_OTHER = 303


async def confirm(visit: Visit) -> Response:
    """Say what will happen, and ask."""
    asked = visit.request.query_params
    change = asked.get("change", "")
    if change not in _CHANGES:
        raise InvalidFieldsError([FieldError("change", f"is {change[:20]!r}; it is one of {', '.join(_CHANGES)}")])
    loop = visit.loop
    models = await in_thread(lambda: describe_models(loop.settings, loop.storage.open()))
    by_alias = {alias: model for model in models for alias in model["aliases"]}
    version = parse_number(asked.get("version", ""))
    chosen = next((model for model in models if model["version"] == version), None)
    if change in _OF_A_VERSION and (chosen is None or not chosen["published"]):
        raise NotFoundError("There is no such version in the repository.")
    if change == "roll-back" and "previous" not in by_alias:
        raise ConflictError("There is no version to go back to.")
    context = {
        "change": change,
        "chosen": chosen,
        "champion": by_alias.get("champion"),
        "previous": by_alias.get("previous"),
        "bake_minutes": loop.settings.bake_minutes,
        "shares": loop.settings.canary_shares,
        "step_minutes": loop.settings.release_step_minutes,
        "compared": loop.settings.release_compared,
    }
    return visit.page("confirm.html", context)


async def _promote(visit: Visit) -> str:
    loop, version = visit.loop, _number(visit, "version")
    await in_thread(lambda: promotion.promote(loop.settings, loop.storage.open(), version, _reason(visit)))
    return "promoted"


async def _roll_back(visit: Visit) -> str:
    loop, seen = visit.loop, _number(visit, "from")
    # Only from what the page said: another may have gone back meanwhile, and twice would be one too far.
    await in_thread(lambda: promotion.roll_back(loop.settings, loop.storage.open(), _reason(visit), only_from=seen))
    return "rolled-back"


async def _shadow(visit: Visit) -> str:
    return await _try(visit, releases.SHADOW)


async def _canary(visit: Visit) -> str:
    return await _try(visit, releases.CANARY)


async def _try(visit: Visit, mode: releases.Mode) -> str:
    loop, version = visit.loop, _number(visit, "version")
    await in_thread(lambda: release.start(loop.settings, loop.storage.open(), version, mode, _reason(visit)))
    return mode


async def _stop(visit: Visit) -> str:
    loop, version = visit.loop, _number(visit, "version")
    await in_thread(lambda: release.stop(loop.storage.open(), version, _reason(visit)))
    return "stop"


async def _retrain(visit: Visit) -> str:
    loop = visit.loop
    await in_thread(lambda: jobs.enqueue(loop.storage.open(), jobs.RETRAIN, _reason(visit)))
    return "retrain"


async def _check(visit: Visit) -> str:
    loop = visit.loop
    await in_thread(lambda: jobs.enqueue(loop.storage.open(), jobs.CHECK, _reason(visit)))
    return "check"


async def _cancel(visit: Visit) -> str:
    loop, number = visit.loop, _number(visit, "job")
    if await in_thread(lambda: jobs.request_cancel(loop.storage.open(), number)) is None:
        raise NotFoundError(f"There is no job {number}.")
    return "cancel"


def _reason(visit: Visit) -> str:
    return f"{REASON} ({visit.session.caller.name})" if visit.session else REASON


def _number(visit: Visit, name: str) -> int:
    number = parse_number(visit.form.get(name, ""))
    if number is None:
        raise InvalidFieldsError([FieldError(name, "is no number")])
    return number


def _then_show(change: Callable[[Visit], Awaitable[str]]) -> Endpoint:
    async def answer(visit: Visit) -> Response:
        target = f"{VERSIONS}?done={await change(visit)}"
        # A script would follow the redirect by itself, and have the page that is meant for the browser.
        if visit.is_partial:
            return Response(headers={"HX-Redirect": target})
        return Response(status_code=_SEE_OTHER, headers={"Location": target})

    return answer


_CHANGES = {
    "promote": _promote,
    "roll-back": _roll_back,
    "shadow": _shadow,
    "canary": _canary,
    "stop": _stop,
    "retrain": _retrain,
    "check": _check,
    "cancel": _cancel,
}
_OF_A_VERSION = ("promote", "shadow", "canary", "stop")

routes = [
    view("GET", CONFIRM_PATH, Scope.ADMIN, confirm),
    *(view("POST", f"/console/{name}", Scope.ADMIN, _then_show(change)) for name, change in _CHANGES.items()),
]
