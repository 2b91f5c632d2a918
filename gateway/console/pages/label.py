"""The view Label: random live texts, with a keyboard key for each label, until their labels decide."""

import asyncio

from fastapi import Response
from sqlalchemy.exc import SQLAlchemyError

from common.errors import PipelineError
from common.source_names import is_trusted
from gateway.console.page import PageRequest, view
from gateway.console.pages.try_page import LABEL_FORM_BYTES, keep_label, source_of
from gateway.http.problems import FieldError, InvalidFieldsError, KeyNotAllowedError, StorageUnavailableError
from gateway.routes import feedback
from gateway.routes.admin import in_thread
from lifecycle.monitoring.labelling import LEAST_TEXTS, Batch, begin, conclude, standing, texts_to_label
from serving.model_repo.repository import ModelRepository
from storage import label_draws
from storage.api_keys import Scope
from storage.feedback import text_hash

PATH = "/console/label"
SHOWN = 10
"""Maximum texts on one page, which nobody else gets meanwhile; the page then asks for more."""
_SEE_OTHER = 303


async def show(page_request: PageRequest) -> Response:
    """Show the page with its texts. It hides the predictions, because people who see them agree too often."""
    app, source = page_request.app, source_of(page_request)

    def read() -> Batch:
        if Scope.FEEDBACK in page_request.scopes:
            return texts_to_label(app.settings, app.storage.open(), source, SHOWN)
        # Who may only look keeps no text from others.
        version = ModelRepository(app.settings.model_repository).require_deployed()
        return Batch(standing(app.settings, app.storage.open(), version), [])

    try:
        labels = await asyncio.to_thread(feedback.labels_of_deployed, app)
    except (PipelineError, SQLAlchemyError) as error:
        raise StorageUnavailableError("There is no model yet, so there are no labels.") from error
    batch = await in_thread(read)
    context = {
        "standing": batch.standing,
        "texts": batch.texts,
        "labels": labels,
        "least_texts": LEAST_TEXTS,
        "settings": app.settings,
        "trusted": is_trusted(source, app.settings.trusted_sources),
    }
    return page_request.page("label.html", context)


async def tell(page_request: PageRequest) -> Response:
    """Store a label, and show what the labels say now."""
    await keep_label(page_request)
    return await _standing(page_request)


async def skip(page_request: PageRequest) -> Response:
    """Leave a text out that nobody can label."""
    _check_may_label(page_request)
    text = page_request.form.get("text", "")
    if not await in_thread(lambda: label_draws.skip(page_request.app.storage.open(), text_hash(text))):
        raise InvalidFieldsError([FieldError("text", "is not among those that were drawn to be labelled")])
    return await _standing(page_request)


async def draw_anew(page_request: PageRequest) -> Response:
    """Begin a new series of today's live texts."""
    _check_may_label(page_request)
    await in_thread(lambda: begin(page_request.app.settings, page_request.app.storage.open()))
    return Response(status_code=_SEE_OTHER, headers={"Location": PATH})


def _check_may_label(page_request: PageRequest) -> None:
    """Refuse users who may only look: what they leave out or draw would change the result."""
    if Scope.FEEDBACK not in page_request.scopes:
        raise KeyNotAllowedError("The key lacks the scope feedback, which labelling needs.")


async def _standing(page_request: PageRequest) -> Response:
    """Show what the labels say. A browser without scripts is redirected to the remaining texts."""
    app = page_request.app
    found = await in_thread(lambda: conclude(app.settings, app.storage.open()))
    if page_request.is_partial:
        return page_request.page("_standing.html", {"standing": found})
    return Response(status_code=_SEE_OTHER, headers={"Location": PATH})


routes = [
    view("GET", PATH, Scope.TEXTS, show),
    view("POST", PATH, Scope.FEEDBACK, tell, most_bytes=LABEL_FORM_BYTES),
    view("POST", f"{PATH}/skip", Scope.TEXTS, skip, most_bytes=LABEL_FORM_BYTES),
    view("POST", f"{PATH}/new", Scope.TEXTS, draw_anew),
]
