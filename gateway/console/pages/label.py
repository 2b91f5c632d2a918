"""The view Label: sampled texts to label, with a keyboard key for each label."""

import asyncio

from fastapi import Response
from sqlalchemy.exc import SQLAlchemyError

from common.errors import PipelineError
from gateway.console.page import PageRequest, view
from gateway.console.pages.try_page import LABEL_FORM_BYTES, keep_label
from gateway.http.problems import StorageUnavailableError
from gateway.routes import feedback
from gateway.routes.admin import in_thread
from lifecycle.monitoring.suggestions import suggest
from storage.api_keys import Scope

PATH = "/console/label"
SHOWN = 50
"""Maximum texts on one page; reloading the page gives more."""
_SEE_OTHER = 303


async def show(page_request: PageRequest) -> Response:
    """Show the page with its texts. It hides the predictions, because people who see them agree too often."""
    settings = page_request.app.settings
    found = await in_thread(lambda: suggest(settings, page_request.app.storage.open(), SHOWN))
    try:
        labels = await asyncio.to_thread(feedback.labels_of_deployed, page_request.app)
    except (PipelineError, SQLAlchemyError) as error:
        raise StorageUnavailableError("There is no model yet, so there are no labels.") from error
    texts = [item.text for item in found.texts]
    return page_request.page("label.html", {"texts": texts, "labels": labels, "settings": settings})


async def tell(page_request: PageRequest) -> Response:
    """Store a label. A browser without scripts is then redirected to the remaining texts."""
    stored = await keep_label(page_request)
    if page_request.is_partial:
        return page_request.page("_stored.html", {"stored": stored})
    return Response(status_code=_SEE_OTHER, headers={"Location": PATH})


routes = [
    view("GET", PATH, Scope.TEXTS, show),
    view("POST", PATH, Scope.FEEDBACK, tell, most_bytes=LABEL_FORM_BYTES),
]
