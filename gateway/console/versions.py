"""The view Versions: what is known of each, and two side by side."""

from fastapi import Response

from gateway.admin import in_thread
from gateway.console.progress import STEPS, read
from gateway.console.releases import trial_of
from gateway.console.views import Visit, view
from gateway.problems import FieldError, InvalidFieldsError
from lifecycle.models import describe_models
from serving.protocol import MODEL_NAME
from settings import Settings
from storage.api_keys import Scope
from storage.tables import Figures

PATH = "/console/versions"
COMPARE_PATH = "/console/versions/compare"
DONE = {
    "promoted": "Done: the version that you chose serves.",
    "rolled-back": "Done: the version before serves again.",
    "retrain": "A retraining was asked for. How it goes is shown below.",
    "shadow": "Done: the version is asked for a share of the live texts too, and answers nobody.",
    "canary": "Done: the version answers a share of the live texts.",
    "stop": "Done: the version is not tried any more.",
    "check": "A check was asked for. How it goes is shown below.",
    "cancel": "The job was asked to end. One that is promoting already does so first.",
}
"""What a change led to, by the end of the address that it leads to."""


async def show(visit: Visit) -> Response:
    """The page, or, for its script after something has changed, the list in it."""
    progress = await in_thread(lambda: read(visit.loop))  # first, so that what changes meanwhile is told later
    models = await _models(visit)
    trials = {model["version"]: trial_of(model["release"]) if model["release"] else None for model in models}
    context = {
        "progress": progress,
        "steps": STEPS,
        "models": models,
        "trials": trials,
        "mlflow": mlflow_pages(visit.loop.settings),
        "done": DONE.get(visit.request.query_params.get("done", ""), ""),
    }
    return visit.part("_versions.html", "versions.html", context)


async def compare(visit: Visit) -> Response:
    """Two versions beside each other."""
    models = {model["version"]: model for model in await _models(visit)}
    chosen = [visit.request.query_params.get(name, "") for name in ("left", "right")]
    unknown = [
        FieldError(name, f"is {version[:20]!r}, which is no version")
        for name, version in zip(("left", "right"), chosen, strict=True)
        if version not in map(str, models)
    ]
    if unknown:
        raise InvalidFieldsError(unknown)
    left, right = (models[int(version)] for version in chosen)
    context = {
        "left": left,
        "right": right,
        "metrics": beside(left["metrics"], right["metrics"]),
        "gates": beside(*({gate["gate"]: gate for gate in model["gates"]} for model in (left, right))),
        "differing": differing(left, right),
    }
    return visit.page("compare.html", context)


def differing(left: Figures, right: Figures) -> Figures | None:
    """The validation texts on which they differ, as found when one was the other's candidate; none where none was."""
    for candidate, champion in ((right, left), (left, right)):
        tried: Figures = next((gate["figures"] for gate in candidate["gates"] if gate["gate"] == "trial"), {})
        if tried.get("champion") == champion["version"]:
            sides = ("champion", "candidate") if candidate is right else ("candidate", "champion")
            rows = [(item["text"], item["right"], *(item[side] for side in sides)) for item in tried["examples"]]
            return {"texts": tried["validation texts"], "differ": tried["differ"], "rows": rows}
    return None


def beside(left: Figures, right: Figures) -> list[tuple[str, object, object]]:
    """Each name with what either side has of it, or none."""
    return [(name, left.get(name), right.get(name)) for name in dict.fromkeys([*left, *right])]


async def _models(visit: Visit) -> list[Figures]:
    loop = visit.loop
    return await in_thread(lambda: describe_models(loop.settings, loop.storage.open()))


def mlflow_pages(settings: Settings) -> str:
    """Where MLflow's pages of the versions are; empty where it is a file, or its address holds a password."""
    uri = settings.mlflow_uri.rstrip("/")
    has_pages = uri.startswith(("http://", "https://")) and "@" not in uri
    return f"{uri}/#/models/{MODEL_NAME}/versions/" if has_pages else ""


routes = [view("GET", PATH, Scope.READ, show), view("GET", COMPARE_PATH, Scope.READ, compare)]
