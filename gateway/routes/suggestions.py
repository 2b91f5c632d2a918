"""`GET /feedback/suggestions`: texts to label next."""

from fastapi import Request, Response

from gateway.http.problems import REFUSALS, InvalidFieldsError, StorageUnavailableError
from gateway.http.schemas import Suggestions
from gateway.routes.admin import in_thread, json_answer, whole_number
from gateway.routes.context import get_context
from gateway.routes.direct_route import DirectRoute
from gateway.routes.openapi import parameter, problem_responses
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


routes = [
    DirectRoute(
        "/feedback/suggestions",
        get_suggestions,
        scope=Scope.TEXTS,
        methods=["GET"],
        operation_id="get_suggestions",
        summary="Texts to label next",
        tags=["feedback"],
        openapi_extra={
            "parameters": [
                parameter(
                    "query",
                    "limit",
                    {"type": "integer", "minimum": 1, "maximum": MOST_SUGGESTIONS, "default": DEFAULT},
                    "Maximum number of texts.",
                )
            ]
        },
        responses={
            200: {"model": Suggestions, "description": "Texts to label next."},
            **problem_responses(InvalidFieldsError, StorageUnavailableError, *REFUSALS),
        },
    )
]
