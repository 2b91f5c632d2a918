"""`GET /feedback/suggestions`: texts to label next."""

from fastapi import Request, Response

from gateway.http.problems import InvalidFieldsError
from gateway.http.schemas import Suggestions
from gateway.routes.admin import in_thread, json_answer, route, whole_number
from gateway.routes.context import get_context
from gateway.routes.openapi import parameter
from lifecycle.monitoring.suggestions import MOST_SUGGESTIONS, suggest
from storage.api_keys import Scope

DEFAULT = 30


async def get_suggestions(request: Request) -> Response:
    """Sampled texts without a label, drawn at random. Held-out texts are never drawn.

    A short list is the beginning of a long one.
    """
    app = get_context(request)
    limit = whole_number(request, "limit", DEFAULT, MOST_SUGGESTIONS)
    found = await in_thread(lambda: suggest(app.settings, app.storage.open(), limit))
    return json_answer(found.figures())


_LIMIT = {"type": "integer", "minimum": 1, "maximum": MOST_SUGGESTIONS, "default": DEFAULT}

routes = [
    route(
        "GET",
        "/feedback/suggestions",
        get_suggestions,
        "Texts to label next",
        Suggestions,
        InvalidFieldsError,
        parameters=[parameter("query", "limit", _LIMIT, "Maximum number of texts.")],
        scope=Scope.TEXTS,
    )
]
