"""`GET /feedback/suggestions`: which texts to label next."""

import orjson
from fastapi import Request, Response

from gateway.admin import whole_number
from gateway.deps import DirectRoute, get_suggester
from gateway.openapi import parameter, problem_responses
from gateway.problems import REFUSALS, InvalidFieldsError, StorageUnavailableError
from gateway.schemas import Suggestions
from lifecycle.suggesting import MOST_SUGGESTIONS
from storage.api_keys import Scope

DEFAULT = 30


async def get_suggestions(request: Request) -> Response:
    """Sampled texts that would teach much if they had labels; the first ones of a list are the list of fewer.

    They are drawn among texts that have no label and are not held out, by how uncertain the model was of them and how
    typical they are of what has drifted, and so that no two are alike. They are found out at most every five minutes.
    """
    limit = whole_number(request, "limit", DEFAULT, MOST_SUGGESTIONS)
    return Response(orjson.dumps(await get_suggester(request).suggest(limit)), media_type="application/json")


routes = [
    DirectRoute(
        "/feedback/suggestions",
        get_suggestions,
        # As what the loop tells otherwise: these are texts that others have asked, and not for each who may send some.
        scope=Scope.READ,
        methods=["GET"],
        operation_id="get_suggestions",
        summary="What to label next",
        tags=["feedback"],
        openapi_extra={
            "parameters": [
                parameter(
                    "query",
                    "limit",
                    {"type": "integer", "minimum": 1, "maximum": MOST_SUGGESTIONS, "default": DEFAULT},
                    "How many at most.",
                )
            ]
        },
        responses={
            200: {"model": Suggestions, "description": "What to label next."},
            **problem_responses(InvalidFieldsError, StorageUnavailableError, *REFUSALS),
        },
    )
]
