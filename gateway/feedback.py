"""`POST /feedback`: texts with their right labels."""

import logging
from functools import partial

import orjson
from fastapi import Request, Response
from sqlalchemy.exc import SQLAlchemyError

from errors import PipelineError
from gateway.deps import DirectRoute, Loop, get_loop, get_metrics
from gateway.openapi import parameter, problem_responses, request_body
from gateway.problems import (
    REFUSALS,
    ConflictError,
    FieldError,
    InvalidFieldsError,
    MalformedBodyError,
    StorageUnavailableError,
    TooLargeError,
    UnsupportedMediaTypeError,
)
from gateway.request_body import read_body
from gateway.schemas import FeedbackAccepted, FeedbackRequest
from gateway.texts import labelled_texts
from serving.bundle import Bundle
from serving.repository import ModelRepository
from storage.api_keys import Scope
from storage.feedback import KeyUsedError, LabelledText, add_feedback

IDEMPOTENCY_HEADER = "Idempotency-Key"
"""As in the IETF's draft draft-ietf-httpapi-idempotency-key-header."""
MOST_KEY_CHARACTERS = 200

log = logging.getLogger(__name__)


async def post_feedback(request: Request) -> Response:
    """Keep right labels, to judge models by and to learn from. What is answered with 201 is on the disk."""
    rows = labelled_texts(await read_body(request))
    key = request.headers.get(IDEMPOTENCY_HEADER, "")
    if len(key) > MOST_KEY_CHARACTERS:
        raise InvalidFieldsError(
            [
                FieldError(
                    IDEMPOTENCY_HEADER, f"is {len(key)} characters long; at most {MOST_KEY_CHARACTERS} are allowed"
                )
            ]
        )
    await keep(request, rows, "api", key)
    return Response(orjson.dumps({"accepted": len(rows)}), 201, media_type="application/json")


async def keep(request: Request, rows: dict[str, LabelledText], source: str, key: str = "") -> None:
    """Keep rows, each under its place in the request; once this returns, they are on the disk.

    Raises:
        InvalidFieldsError: labels are none of the model's.
        ConflictError: `key` came with other rows before.
        StorageUnavailableError: they cannot be kept now.
    """
    loop = get_loop(request)
    await loop.work.run(partial(_keep, loop, rows, source, key))
    for row in rows.values():
        get_metrics(request).feedback.labels(row.label).inc()


def _keep(loop: Loop, rows: dict[str, LabelledText], source: str, key: str) -> None:
    try:
        labels = labels_of_deployed(loop)
        unknown = [
            FieldError(f"{place}label", f"is {row.label[:50]!r}; it is one of {', '.join(labels)}")
            for place, row in rows.items()
            if row.label not in labels
        ]
        if unknown:
            raise InvalidFieldsError(unknown)
        add_feedback(loop.storage.open(), list(rows.values()), source, key)
    except KeyUsedError as error:
        raise ConflictError(
            f"The {IDEMPOTENCY_HEADER} {key[:50]!r} came with other feedback before; each request needs its own."
        ) from error
    except (SQLAlchemyError, PipelineError) as error:
        log.error("Feedback could not be kept: %s", error)
        raise StorageUnavailableError("The feedback cannot be kept now; send it again.") from error


def labels_of_deployed(loop: Loop) -> tuple[str, ...]:
    """The labels of the version that is deployed.

    Raises:
        PipelineError: there is none.
    """
    repository = ModelRepository(loop.settings.model_repository)
    deployed = repository.deployed()
    if deployed is None:
        raise PipelineError("No model is deployed.")
    return Bundle.load(repository.version_directory(deployed)).labels


routes = [
    DirectRoute(
        "/feedback",
        post_feedback,
        scope=Scope.FEEDBACK,
        methods=["POST"],
        status_code=201,
        operation_id="post_feedback",
        summary="Tell right labels",
        tags=["feedback"],
        openapi_extra={
            **request_body(FeedbackRequest),
            "parameters": [
                parameter(
                    "header",
                    IDEMPOTENCY_HEADER,
                    {"type": "string", "maxLength": MOST_KEY_CHARACTERS},
                    "Your name for this request: sent again with the same name, it is taken once.",
                )
            ],
        },
        responses={
            201: {
                "model": FeedbackAccepted,
                "description": "Kept.",
                "content": {"application/json": {"example": {"accepted": 1}}},
            },
            **problem_responses(
                MalformedBodyError,
                ConflictError,
                TooLargeError,
                UnsupportedMediaTypeError,
                InvalidFieldsError,
                StorageUnavailableError,
                *REFUSALS,
            ),
        },
    )
]
