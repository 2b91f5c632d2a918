"""`POST /feedback`: texts with their right labels."""

import logging
from dataclasses import replace
from functools import partial

import orjson
from fastapi import Request, Response
from sqlalchemy.exc import SQLAlchemyError

from common.errors import PipelineError
from common.label_names import parse_label_names
from common.source_names import of_key
from gateway.http.callers import caller_of
from gateway.http.problems import (
    MOST_ERRORS,
    REFUSALS,
    ConflictError,
    FeedbackQuotaError,
    FieldError,
    InvalidFieldsError,
    MalformedBodyError,
    StorageFullError,
    StorageUnavailableError,
    TooLargeError,
    UnsupportedMediaTypeError,
)
from gateway.http.request_body import MAX_BODY_BYTES, read_body
from gateway.http.schemas import FeedbackAccepted, FeedbackRequest
from gateway.http.validation import labelled_texts
from gateway.load_control.rate_limit import KEYLESS_FEEDBACK_KIB
from gateway.routes.context import AppContext, get_context
from gateway.routes.direct_route import DirectRoute
from gateway.routes.openapi import parameter, problem_responses, request_body
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from storage.api_keys import ANONYMOUS_NAME, Scope
from storage.feedback import KeyUsedError, LabelledText, add_feedback
from storage.feedback_sources import FullError, Quota, QuotaError
from tables.labels import Labels

IDEMPOTENCY_HEADER = "Idempotency-Key"
"""The header of the IETF draft draft-ietf-httpapi-idempotency-key-header."""
MOST_KEY_CHARACTERS = 200

log = logging.getLogger(__name__)


async def post_feedback(request: Request) -> Response:
    """Store right labels, for training and, if the source is trusted, for evaluating models.

    What is answered with 201 is on the disk. The source is the API key; `SENTIMENT_TRUSTED_SOURCES` says whom to trust.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal():
        _bound_keyless(request, int(declared))
    body = await read_body(request)
    if not declared.isdecimal():
        _bound_keyless(request, len(body))
    rows = labelled_texts(body)
    key = request.headers.get(IDEMPOTENCY_HEADER, "")
    if len(key) > MOST_KEY_CHARACTERS:
        raise InvalidFieldsError(
            [
                FieldError(
                    IDEMPOTENCY_HEADER, f"is {len(key)} characters long; at most {MOST_KEY_CHARACTERS} are allowed"
                )
            ]
        )
    get_context(request).count_texts(request, len(rows))
    await keep(request, rows, of_key(request.scope["state"]["caller"]), key)
    return Response(orjson.dumps({"accepted": len(rows)}), 201, media_type="application/json")


def _bound_keyless(request: Request, size: int) -> None:
    """Count the bytes of a request without a key, before its body is read if it declares them.

    Raises:
        FeedbackQuotaError: it exceeds `KEYLESS_FEEDBACK_KIB`.
    """
    if request.scope["state"]["caller"] != ANONYMOUS_NAME:
        return
    retry_after_s = get_context(request).keyless_feedback.hit("", -(-min(size, MAX_BODY_BYTES) // 1024))
    if retry_after_s is not None:
        most = f"{KEYLESS_FEEDBACK_KIB.amount:,} KiB in {KEYLESS_FEEDBACK_KIB.multiples} seconds"
        detail = f"Without a key, at most {most} of feedback are read. Send it later, or with a key."
        raise FeedbackQuotaError(detail, retry_after_s=retry_after_s)


async def keep(request: Request, rows: dict[str, LabelledText], source: str, key: str = "") -> dict[str, LabelledText]:
    """Store rows durably, and return them with their labels as the model spells them.

    The keys of `rows` are the rows' positions in the request, for error messages.

    Raises:
        InvalidFieldsError: the model does not have some of the labels.
        ConflictError: the caller used `key` for other rows before.
        FeedbackQuotaError: the source is over its quota for now.
        StorageFullError: no more feedback can be stored.
        StorageUnavailableError: the rows cannot be stored now.
    """
    app = get_context(request)
    kept = await app.work.run(partial(_keep, app, rows, source, key, caller_of(request.scope)))
    for row in kept.values():
        get_context(request).metrics.feedback.labels(row.label).inc()
    return kept


def _keep(
    app: AppContext, rows: dict[str, LabelledText], source: str, key: str, caller: str
) -> dict[str, LabelledText]:
    try:
        labels = labels_of_deployed(app)
        spellings = Labels(parse_label_names(app.settings.label_names), labels)
        kept = {
            place: row if row.label in labels else replace(row, label=spellings.known(row.label))
            for place, row in rows.items()
        }
        unknown = [(place, rows[place].label) for place, row in kept.items() if row.label not in labels]
        if unknown:
            errors = [
                FieldError(f"{place}label", f"is {label[:50]!r}; it must be one of {', '.join(labels)}")
                for place, label in unknown[:MOST_ERRORS]
            ]
            raise InvalidFieldsError(errors, len(unknown))
        quota = Quota.from_settings(app.settings)
        add_feedback(app.storage.open(), list(kept.values()), source, key, caller, quota)
        return kept
    except FullError as error:
        log.error("Feedback is refused: %s", error)
        raise StorageFullError(
            "There is no space for more feedback; the server's log says how to make some."
        ) from error
    except QuotaError as error:
        raise FeedbackQuotaError(str(error), retry_after_s=error.retry_after_s) from error
    except KeyUsedError as error:
        raise ConflictError(
            f"The {IDEMPOTENCY_HEADER} {key[:50]!r} was used for other feedback before; use a new key for each request."
        ) from error
    except (SQLAlchemyError, PipelineError) as error:
        log.error("Feedback could not be stored: %s", error)
        raise StorageUnavailableError("The feedback cannot be stored now; send it again.") from error


def labels_of_deployed(app: AppContext) -> tuple[str, ...]:
    """Return the labels of the deployed version.

    Raises:
        PipelineError: no version is deployed.
    """
    repository = ModelRepository(app.settings.model_repository)
    deployed = repository.deployed()
    if deployed is None:
        raise PipelineError("No model is deployed.")
    return Bundle.load(repository.version_directory(deployed)).labels


routes = [
    DirectRoute(
        "/feedback",
        post_feedback,
        scope=Scope.FEEDBACK,
        method="POST",
        status_code=201,
        summary="Send feedback",
        openapi_extra={
            **request_body(FeedbackRequest),
            "parameters": [
                parameter(
                    "header",
                    IDEMPOTENCY_HEADER,
                    {"type": "string", "maxLength": MOST_KEY_CHARACTERS},
                    "A key for this request. A repeated request with the same key is stored once.",
                )
            ],
        },
        responses={
            201: {
                "model": FeedbackAccepted,
                "description": "Stored.",
                "content": {"application/json": {"example": {"accepted": 1}}},
            },
            **problem_responses(
                MalformedBodyError,
                ConflictError,
                TooLargeError,
                UnsupportedMediaTypeError,
                InvalidFieldsError,
                FeedbackQuotaError,
                StorageFullError,
                StorageUnavailableError,
                *REFUSALS,
            ),
        },
    )
]
