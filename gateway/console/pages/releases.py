"""Shadow and canary releases: their figures, and the page of texts that the two versions label differently."""

from dataclasses import dataclass

from fastapi import Response

from gateway.console.page import PageRequest, view
from gateway.console.rendering import percent
from gateway.http.problems import FieldError, InvalidFieldsError, NotFoundError
from gateway.routes.admin import in_thread, parse_number
from lifecycle.canary.release_figures import Part, call_ms, parts_of
from lifecycle.deployment.version_report import describe_models
from storage import releases
from storage.api_keys import Scope
from storage.tables import Difference, Figures

PATH = "/console/versions/differences"
SHOWN = 100
"""Maximum texts shown; the newest ones."""


@dataclass(frozen=True)
class Trial:
    """A release as the pages show it."""

    is_running: bool
    held: str
    """Why the release is held at its step until an admin decides; empty if it is not held."""
    summary: str
    milliseconds: tuple[float, float] | None
    """Mean duration of a call: of the version in the release, and of the deployed version."""
    failed: int
    asked: int
    parts: list[Part]


def trial_of(release: Figures) -> Trial:
    """Create a `Trial` from a release in the API's format."""
    figures = release["figures"]
    failed = figures.get("failed", 0)
    return Trial(
        release["state"] == releases.RUNNING,
        release["held"],
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
        return f"{beside}: it classifies the same texts, and no client gets its predictions"
    return f"{beside}: it answers {percent(release['share'], 0)} of the live texts"


async def show_differences(page_request: PageRequest) -> Response:
    """Show texts that a version labelled differently from the deployed version, in its last release."""
    version = parse_number(page_request.request.query_params.get("version", ""))
    if version is None:
        raise InvalidFieldsError([FieldError("version", "is not a number")])
    app = page_request.app

    def find() -> tuple[Figures | None, list[Difference] | None]:
        database = app.storage.open()
        model = next((model for model in describe_models(app.settings, database) if model["version"] == version), None)
        return model, releases.differences_of(database, version, SHOWN)

    model, found = await in_thread(find)
    if model is None or found is None:
        raise NotFoundError(f"Version {version} never had a shadow or canary.")
    context = {"model": model, "release": model["release"], "trial": trial_of(model["release"]), "found": found}
    return page_request.page("differences.html", context)


routes = [view("GET", PATH, Scope.TEXTS, show_differences)]
