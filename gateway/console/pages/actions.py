"""The actions of the console, such as promote and roll back. Each needs the scope `admin` and is confirmed first."""

from collections.abc import Awaitable, Callable
from functools import partial

from fastapi import Response

from gateway.console.page import Endpoint, PageRequest, view
from gateway.console.pages.versions import PATH as VERSIONS
from gateway.http.problems import ConflictError, FieldError, InvalidFieldsError, NotFoundError
from gateway.routes.admin import in_thread, parse_number
from lifecycle.canary import release
from lifecycle.deployment import promotion
from lifecycle.deployment.version_report import describe_models
from serving.model_repo.repository import ModelRepository
from storage import jobs, releases
from storage.api_keys import Scope

CONFIRM_PATH = "/console/confirm"
REASON = "by the console"
"""Reason of these actions in the events; the name of the key follows it."""
_SEE_OTHER = 303


async def confirm(page_request: PageRequest) -> Response:
    """Show what an action will do, and ask for confirmation."""
    asked = page_request.request.query_params
    change = asked.get("change", "")
    if change not in _CHANGES:
        raise InvalidFieldsError([FieldError("change", f"is {change[:20]!r}; it must be one of {', '.join(_CHANGES)}")])
    app = page_request.app
    models = await in_thread(lambda: describe_models(app.settings, app.storage.open()))
    by_alias = {alias: model for model in models for alias in model["aliases"]}
    version = parse_number(asked.get("version", ""))
    chosen = next((model for model in models if model["version"] == version), None)
    if change in _OF_A_VERSION and (chosen is None or not chosen["published"]):
        raise NotFoundError("This version is not in the model repository.")
    if change == "roll-back" and "previous" not in by_alias:
        repository = ModelRepository(app.settings.model_repository)
        raise ConflictError(await in_thread(lambda: promotion.why_no_rollback(app.storage.open(), repository)))
    context = {
        "change": change,
        "chosen": chosen,
        "champion": by_alias.get("champion"),
        "previous": by_alias.get("previous"),
        "monitor_minutes": app.settings.monitor_minutes,
        "shares": app.settings.canary_shares,
        "step_minutes": app.settings.release_step_minutes,
        "compared": app.settings.release_compared,
    }
    return page_request.page("confirm.html", context)


async def _promote(page_request: PageRequest) -> str:
    app, version = page_request.app, _number(page_request, "version")
    await in_thread(lambda: promotion.promote(app.settings, app.storage.open(), version, _reason(page_request)))
    return "promoted"


async def _roll_back(page_request: PageRequest) -> str:
    app, seen = page_request.app, _number(page_request, "from")
    # Only from the version that the page showed: after another admin's rollback, this would go one version too far.
    await in_thread(
        lambda: promotion.roll_back(app.settings, app.storage.open(), _reason(page_request), only_from=seen)
    )
    return "rolled-back"


async def _try(mode: releases.Mode, page_request: PageRequest) -> str:
    app, version = page_request.app, _number(page_request, "version")
    await in_thread(lambda: release.start(app.settings, app.storage.open(), version, mode, _reason(page_request)))
    return mode


async def _stop(page_request: PageRequest) -> str:
    app, version = page_request.app, _number(page_request, "version")
    await in_thread(lambda: release.stop(app.storage.open(), version, _reason(page_request)))
    return "stop"


async def _enqueue(kind: jobs.Kind, page_request: PageRequest) -> str:
    app = page_request.app
    await in_thread(lambda: jobs.enqueue(app.storage.open(), kind, _reason(page_request)))
    return kind


async def _cancel(page_request: PageRequest) -> str:
    app, number = page_request.app, _number(page_request, "job")
    if await in_thread(lambda: jobs.request_cancel(app.storage.open(), number)) is None:
        raise NotFoundError(f"There is no job {number}.")
    return "cancel"


def _reason(page_request: PageRequest) -> str:
    return f"{REASON} ({page_request.session.caller.name})" if page_request.session else REASON


def _number(page_request: PageRequest, name: str) -> int:
    number = parse_number(page_request.form.get(name, ""))
    if number is None:
        raise InvalidFieldsError([FieldError(name, "is not a number")])
    return number


def _then_show(change: Callable[[PageRequest], Awaitable[str]]) -> Endpoint:
    async def answer(page_request: PageRequest) -> Response:
        target = f"{VERSIONS}?done={await change(page_request)}"
        # A script follows an HTTP redirect itself, and would get the page instead of the browser.
        if page_request.is_partial:
            return Response(headers={"HX-Redirect": target})
        return Response(status_code=_SEE_OTHER, headers={"Location": target})

    return answer


_CHANGES: dict[str, Callable[[PageRequest], Awaitable[str]]] = {
    "promote": _promote,
    "roll-back": _roll_back,
    "shadow": partial(_try, releases.SHADOW),
    "canary": partial(_try, releases.CANARY),
    "stop": _stop,
    "retrain": partial(_enqueue, jobs.RETRAIN),
    "check": partial(_enqueue, jobs.CHECK),
    "cancel": _cancel,
}
_OF_A_VERSION = ("promote", "shadow", "canary", "stop")

routes = [
    view("GET", CONFIRM_PATH, Scope.ADMIN, confirm),
    *(view("POST", f"/console/{name}", Scope.ADMIN, _then_show(change)) for name, change in _CHANGES.items()),
]
