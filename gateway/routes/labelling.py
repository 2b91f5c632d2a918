"""The routes for labelling: random live texts, and what their labels say about the deployed version."""

from fastapi import Request, Response

from common.source_names import of_key
from gateway.http.problems import InvalidFieldsError, NotFoundError
from gateway.http.schemas import Labelling
from gateway.routes.admin import in_thread, json_answer, route, whole_number
from gateway.routes.context import get_context
from gateway.routes.openapi import parameter
from lifecycle.monitoring.labelling import MOST_AT_ONCE, Batch, conclude, texts_to_label
from storage import label_draws
from storage.api_keys import Scope

DEFAULT = 30


async def get_labelling(request: Request) -> Response:
    """Random live texts to label, and what the labels say so far. The predictions are left out on purpose.

    The texts are kept for the key for ten minutes. Send their labels to `POST /feedback`; they count if the source is
    trusted. There are no texts once the labels have decided.
    """
    app = get_context(request)
    limit = whole_number(request, "limit", DEFAULT, MOST_AT_ONCE)
    holder = of_key(request.scope["state"]["caller"])
    batch = await in_thread(lambda: texts_to_label(app.settings, app.storage.open(), holder, limit))
    return json_answer(batch.figures())


async def skip_text(request: Request) -> Response:
    """Leave out a text whose label nobody can tell. It stays left out, even if it gets a label later."""
    app = get_context(request)
    hash_ = request.path_params["text"]

    def skip() -> Batch | None:
        database = app.storage.open()
        return Batch(conclude(app.settings, database), []) if label_draws.skip(database, hash_) else None

    batch = await in_thread(skip)
    if batch is None:
        raise NotFoundError("There is no such text among those that were drawn to be labelled.")
    return json_answer(batch.figures())


_LIMIT = {"type": "integer", "minimum": 1, "maximum": MOST_AT_ONCE, "default": DEFAULT}
_TEXT = {"type": "string", "maxLength": 64}

routes = [
    route(
        "GET",
        "/labelling",
        get_labelling,
        "Random texts to label",
        Labelling,
        InvalidFieldsError,
        parameters=[parameter("query", "limit", _LIMIT, "Maximum number of texts.")],
        scope=Scope.TEXTS,
    ),
    route(
        "POST",
        "/labelling/{text}/skip",
        skip_text,
        "Leave a text out",
        Labelling,
        NotFoundError,
        parameters=[parameter("path", "text", _TEXT, "The text's `id`.", required=True)],
        scope=Scope.FEEDBACK,
    ),
]
