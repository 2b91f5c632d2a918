"""A version that is tried on live texts: what was found of it so far, and the texts that it labels differently."""

from dataclasses import dataclass

from fastapi import Response

from gateway.admin import in_thread, parse_number
from gateway.console.rendering import percent
from gateway.console.views import Visit, view
from gateway.problems import FieldError, InvalidFieldsError, NotFoundError
from lifecycle.models import describe_models
from lifecycle.release_figures import Part, call_ms, parts_of
from storage import releases
from storage.api_keys import Scope
from storage.tables import Difference, Figures

PATH = "/console/versions/differences"
SHOWN = 100
"""Texts, the newest."""


@dataclass(frozen=True)
class Trial:
    """What the page tells of a release."""

    is_running: bool
    summary: str
    milliseconds: tuple[float, float] | None
    """Mean of a call, of the version that is tried and of the one that serves."""
    failed: int
    asked: int
    parts: list[Part]


def trial_of(release: Figures) -> Trial:
    """What is told of a release, from what the API tells of it."""
    figures = release["figures"]
    failed = figures.get("failed", 0)
    return Trial(
        release["state"] == releases.RUNNING,
        _summary(release),
        call_ms(figures),
        failed,
        failed + figures.get("answered", 0),
        parts_of(figures),
    )


def _summary(release: Figures) -> str:
    beside = f"{release['mode'].capitalize()} beside version {release['champion']}"
    if release["state"] != releases.RUNNING:
        return f"{beside}, {release['state'].replace('-', ' ')}: {release['outcome']}"
    if release["mode"] == releases.SHADOW:
        return f"{beside}: it is asked too, and answers nobody"
    return f"{beside}: it answers {percent(release['share'], 0)} of the live texts"


async def show_differences(visit: Visit) -> Response:
    """The page of texts to which a version gave another label than the one that served, when it was tried last."""
    version = parse_number(visit.request.query_params.get("version", ""))
    if version is None:
        raise InvalidFieldsError([FieldError("version", "is no number")])
    loop = visit.loop

    def find() -> tuple[Figures | None, list[Difference] | None]:
        database = loop.storage.open()
        model = next((model for model in describe_models(loop.settings, database) if model["version"] == version), None)
        return model, releases.differences_of(database, version, SHOWN)

    model, found = await in_thread(find)
    if model is None or found is None:
        raise NotFoundError(f"Version {version} was never tried on live texts.")
    context = {"model": model, "release": model["release"], "trial": trial_of(model["release"]), "found": found}
    return visit.page("differences.html", context)


routes = [view("GET", PATH, Scope.READ, show_differences)]
