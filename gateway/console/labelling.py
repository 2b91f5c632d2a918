"""The view Label: texts that would teach most, and a key for each label."""

import asyncio

from fastapi import Response
from sqlalchemy.exc import SQLAlchemyError

from errors import PipelineError
from gateway import feedback
from gateway.console.trying import keep_label
from gateway.console.views import Visit, view
from gateway.deps import get_suggester
from gateway.problems import StorageUnavailableError
from storage.api_keys import Scope

PATH = "/console/label"
SHOWN = 50
"""Texts of one page; then it asks for more."""
_UNCERTAIN = 0.7
"""Of an answer's entropy: with two labels, the more probable one has under 0.81."""
_NEW = 0.6
"""Of the probability to be a live text, which is about a half where nothing has changed."""
_SEE_OTHER = 303


async def show(visit: Visit) -> Response:
    """The page at once, and the texts in it when they are found: the first time that takes seconds."""
    if not visit.is_partial and "texts" not in visit.request.query_params:
        return visit.page("label.html", {"items": None})
    found = await get_suggester(visit.request).suggest(SHOWN)
    try:
        labels = await asyncio.to_thread(feedback.labels_of_deployed, visit.loop)
    except (PipelineError, SQLAlchemyError) as error:
        raise StorageUnavailableError("There is no model yet, so no label is known.") from error
    context = {
        "items": [(item["text"], _why(item["uncertainty"], item["drift"])) for item in found["suggestions"]],
        "labels": labels,
        "settings": visit.loop.settings,
    }
    return visit.part("_label.html", "label.html", context)


async def tell(visit: Visit) -> Response:
    """Keep a label; a browser without scripts goes on to the texts that are left."""
    told = await keep_label(visit)
    if visit.is_partial:
        return visit.page("_told.html", {"told": told})
    return Response(status_code=_SEE_OTHER, headers={"Location": f"{PATH}?texts=1"})


def _why(uncertainty: float, drift: float | None) -> str:
    """Why a text is suggested. Not what the model said: who reads that first agrees too often."""
    reasons = ["the model is unsure"] if uncertainty >= _UNCERTAIN else []
    if drift is not None and drift >= _NEW:
        reasons.append("it is unlike what the model learnt from")
    return " and ".join(reasons) or "it is unlike those before it"


routes = [view("GET", PATH, Scope.READ, show), view("POST", PATH, Scope.FEEDBACK, tell)]
