"""The view Versions: the details of each version, and a comparison of two."""

from urllib.parse import urlsplit

from fastapi import Response

from common.settings import Settings
from gateway.console.page import PageRequest, view
from gateway.console.pages.progress import STEPS, read
from gateway.console.pages.releases import trial_of
from gateway.http.problems import FieldError, InvalidFieldsError
from gateway.routes.admin import in_thread
from lifecycle.deployment.version_report import describe_models, without_texts
from serving.model_repo.protocol import MODEL_NAME
from storage.api_keys import Scope
from storage.tables import Figures

PATH = "/console/versions"
COMPARE_PATH = "/console/versions/compare"
DONE = {
    "promoted": "Done: the version is deployed.",
    "rolled-back": "Done: the previous version is deployed again.",
    "retrain": "A retraining was requested. Its progress is shown below.",
    "shadow": "Done: the version also classifies a share of the live texts, and no client gets its predictions.",
    "canary": "Done: the version answers a share of the live texts.",
    "stop": "Done: the trial has ended.",
    "check": "A check was requested. Its progress is shown below.",
    "cancel": "Cancellation was requested. A job that is already promoting finishes the promotion first.",
}
"""Message after an action, by the value of `done` in the URL to which the action redirects."""


async def show(page_request: PageRequest) -> Response:
    """Show the page, or only the list if its script requests it after a change."""
    progress = await in_thread(
        lambda: read(page_request.app)
    )  # first, so that the stream reports changes made meanwhile
    models = await _models(page_request)
    trials = {model["version"]: trial_of(model["release"]) if model["release"] else None for model in models}
    context = {
        "progress": progress,
        "steps": STEPS,
        "models": models,
        "previous": next((model["version"] for model in models if "previous" in model["aliases"]), None),
        "trials": trials,
        "mlflow": mlflow_pages(page_request.app.settings),
        "done": DONE.get(page_request.request.query_params.get("done", ""), ""),
    }
    return page_request.part("_versions.html", "versions.html", context)


async def compare(page_request: PageRequest) -> Response:
    """Show two versions side by side."""
    models = {model["version"]: model for model in await _models(page_request)}
    chosen = [page_request.request.query_params.get(name, "") for name in ("left", "right")]
    unknown = [
        FieldError(name, f"is {version[:20]!r}, which is not a version")
        for name, version in zip(("left", "right"), chosen, strict=True)
        if version not in map(str, models)
    ]
    if unknown:
        raise InvalidFieldsError(unknown)
    left, right = (models[int(version)] for version in chosen)
    context = {
        "left": left,
        "right": right,
        "metrics": beside(*(all_metrics(model) for model in (left, right))),
        "gates": beside(*({gate["gate"]: gate for gate in model["gates"]} for model in (left, right))),
        "differing": differing(left, right),
    }
    return page_request.page("compare.html", context)


def differing(left: Figures, right: Figures) -> Figures | None:
    """Return the validation texts on which two versions differ; None unless one was the candidate against the other."""
    for candidate, champion in ((right, left), (left, right)):
        tried: Figures = next((gate["figures"] for gate in candidate["gates"] if gate["gate"] == "trial"), {})
        if tried.get("champion") == champion["version"]:
            sides = ("champion", "candidate") if candidate is right else ("candidate", "champion")
            examples = tried.get("examples", [])
            rows = [(item["text"], item["right"], *(item[side] for side in sides)) for item in examples]
            return {"texts": tried["validation texts"], "differ": tried["differ"], "rows": rows}
    return None


def all_metrics(model: Figures) -> Figures:
    """Return a version's metrics, followed by accuracy and macro F1 on held-out feedback and of its baseline."""
    names = ("accuracy", "macro_f1")
    feedback = {f"{name} on feedback": model["feedback_metrics"].get(name) for name in names}
    feedback["texts of feedback"] = model["feedback_metrics"].get("texts")
    baseline = {f"baseline {name}": model["baseline"].get(name) for name in names}
    return {
        **model["metrics"],
        **(feedback if model["feedback_metrics"] else {}),
        **(baseline if model["baseline"] else {}),
    }


def beside(left: Figures, right: Figures) -> list[tuple[str, object, object]]:
    """Return each name with its value on both sides, None if a side lacks it."""
    return [(name, left.get(name), right.get(name)) for name in dict.fromkeys([*left, *right])]


async def _models(page_request: PageRequest) -> list[Figures]:
    app = page_request.app
    models = await in_thread(lambda: describe_models(app.settings, app.storage.open()))
    return models if Scope.TEXTS in page_request.scopes else without_texts(models)


def mlflow_pages(settings: Settings) -> str:
    """Return the URL of MLflow's version pages; empty if no browser can open it, or it contains a password."""
    uri = settings.mlflow_uri.rstrip("/")
    host = urlsplit(uri).hostname or ""  # without a dot, it is a name among containers, such as http://mlflow:5000
    has_pages = uri.startswith(("http://", "https://")) and "@" not in uri and (host == "localhost" or "." in host)
    return f"{uri}/#/models/{MODEL_NAME}/versions/" if has_pages else ""


routes = [view("GET", PATH, Scope.READ, show), view("GET", COMPARE_PATH, Scope.READ, compare)]
