"""`POST /predict/live` and `POST /predict/batch`."""

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import orjson
from fastapi import Request, Response
from starlette.types import Receive, Send
from starlette.types import Scope as RequestScope

from common.settings import Settings
from gateway.http import server_timing
from gateway.http.problems import (
    REFUSALS,
    FieldError,
    InvalidFieldsError,
    MalformedBodyError,
    ModelTimeoutError,
    ModelUnavailableError,
    ProblemError,
    TooLargeError,
    UnsupportedMediaTypeError,
)
from gateway.http.request_body import read_body
from gateway.http.schemas import BatchRequest, LiveRequest, Predictions
from gateway.http.validation import batch_texts, live_text
from gateway.inference.batch_splitting import TextsRefusedError
from gateway.inference.predictor import Predictor
from gateway.load_control.admission import Route as BoundedRoute
from gateway.load_control.deadlines import TIMEOUT_HEADER, time_allowed_s, unless_client_leaves
from gateway.routes.context import get_context
from gateway.routes.direct_route import DirectRoute
from gateway.routes.openapi import parameter, problem_responses, request_body
from serving.client.errors import TextRefusedError
from serving.client.prediction import Prediction
from storage.api_keys import Scope

LIVE_PATH = "/predict/live"
BATCH_PATH = "/predict/batch"
VERSION_HEADER = "X-Model-Version"
TRUNCATED_HEADER = "X-Truncated-Texts"

_LIVE_ANSWERS = 8_192
"""Maximum encoded responses kept for cached live predictions. There are hardly more: a score has 4 decimals, and all
texts with the same label and score share a response. Encoding it again took 4 of the 25 µs for a cached text."""

_TOLD = 4
"""Number of leading fields of a `Prediction` that are part of the response."""


class _Answer(Response):
    """A response that is sent many times. Each time its headers are copied, so that middleware may change them."""

    media_type = "application/json"

    async def __call__(self, _scope: RequestScope, _receive: Receive, send: Send) -> None:
        """Send the response with a copy of its headers."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers.copy()})
        await send({"type": "http.response.body", "body": self.body})


async def predict_live(request: Request) -> Response:
    """Classify one text as fast as possible. A text longer than the model reads is cut, and a header says so."""
    app = get_context(request)
    predictor = app.predictor
    deadline = _deadline(request, app.settings.live_deadline_s)
    text = live_text(await read_body(request))
    known = predictor.known(text)
    if known is not None:
        return _known_live_answer(*known[:_TOLD])
    timing = server_timing.begin()
    try:
        prediction = await unless_client_leaves(request.receive, predictor.predict_live(text, deadline))
    except TextRefusedError as error:
        raise InvalidFieldsError([FieldError("text", _refusal(str(error)))]) from error
    return _answer([prediction], timing.header())


async def predict_batch(request: Request) -> Response:
    """Classify a list of texts, all with one version of the model. Texts longer than the model reads are cut."""
    app = get_context(request)
    deadline = _deadline(request, app.settings.batch_deadline_s)
    texts = batch_texts(await read_body(request))
    app.count_texts(request, len(texts))
    timing = server_timing.begin()
    try:
        predictions = await unless_client_leaves(request.receive, app.predictor.predict_batch(texts, deadline))
    except TextsRefusedError as error:
        raise InvalidFieldsError(
            [FieldError(f"texts[{position}]", _refusal(reason)) for position, reason in error.refusals.items()]
        ) from error
    return _answer(predictions, timing.header())


def bounded_routes(settings: Settings, predictor: Predictor) -> dict[str, BoundedRoute]:
    """Return the backlog and deadline of each route with limited work, by path."""

    def is_known(body: bytes) -> bool:
        try:
            return predictor.knows(live_text(body))
        except ProblemError:
            return False

    return {
        LIVE_PATH: BoundedRoute(predictor.live_backlog, settings.live_deadline_s, is_known),
        BATCH_PATH: BoundedRoute(predictor.batch_backlog, settings.batch_deadline_s),
    }


def _deadline(request: Request, longest_s: float) -> float:
    """Return the deadline of a request, in the event loop's time."""
    return asyncio.get_running_loop().time() + time_allowed_s(request.scope["headers"], longest_s)


def _refusal(reason: str) -> str:
    return f"is refused by the model: {reason}"


@lru_cache(maxsize=_LIVE_ANSWERS)
def _known_live_answer(label: str, score: float, version: int, truncated: bool) -> Response:
    return _answer([Prediction(label, score, version, truncated, b"")], server_timing.KNOWN)


def _answer(predictions: Sequence[Prediction], timing: str) -> Response:
    labels = {str(position): prediction.label for position, prediction in enumerate(predictions)}
    scores = {str(position): prediction.score for position, prediction in enumerate(predictions)}
    headers = {VERSION_HEADER: str(predictions[0].version), server_timing.HEADER: timing}
    truncated = [position for position, prediction in enumerate(predictions) if prediction.truncated]
    if truncated:
        headers[TRUNCATED_HEADER] = _ranges(truncated)
    body = orjson.dumps({"predictions": {"label": labels, "score": scores}})
    return _Answer(body, headers=headers)


def _ranges(positions: Sequence[int]) -> str:
    """Format ascending numbers as `0,3-7`. Single numbers of the longest list would exceed a proxy's header limit."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], position]
        else:
            runs.append([position])
    return ",".join("-".join(map(str, run)) for run in runs)


def _answered(example: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": Predictions,
        "description": "The label of each text and its score, by the text's position.",
        "content": {"application/json": {"example": {"predictions": example}}},
        "headers": {
            VERSION_HEADER: {
                "description": "The version that made the predictions.",
                "required": True,
                "schema": {"type": "integer", "minimum": 1},
                "example": 1,
            },
            server_timing.HEADER: {
                "description": "Milliseconds spent waiting (queue), tokenizing, running the graph, and in total; "
                "cache;desc=hit if the model was not called.",
                "required": True,
                "schema": {"type": "string"},
                "example": "queue;dur=0.31, tokenize;dur=0.12, graph;dur=3.40, total;dur=4.52",
            },
            TRUNCATED_HEADER: {
                "description": "Positions of the texts that were cut because they are longer than the model reads, "
                "such as 0,3-7; absent if none was.",
                "schema": {"type": "string", "pattern": "^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$"},
                "example": "0",
            },
        },
    }


_PROBLEMS = problem_responses(
    MalformedBodyError,
    TooLargeError,
    UnsupportedMediaTypeError,
    InvalidFieldsError,
    ModelUnavailableError,
    *REFUSALS,
    ModelTimeoutError,
)
_TIMEOUT = parameter(
    "header",
    TIMEOUT_HEADER,
    {"type": "integer", "minimum": 0, "maximum": 999_999_999},
    "Deadline of the request in milliseconds. If it cannot be met, the request is refused. The service's own deadline "
    "applies if it is shorter.",
)

routes = [
    DirectRoute(
        LIVE_PATH,
        predict_live,
        scope=Scope.PREDICT,
        method="POST",
        summary="Classify one text",
        openapi_extra={**request_body(LiveRequest), "parameters": [_TIMEOUT]},
        responses={200: _answered({"label": {"0": "Positive"}, "score": {"0": 0.9875}}), **_PROBLEMS},
    ),
    DirectRoute(
        BATCH_PATH,
        predict_batch,
        scope=Scope.PREDICT,
        method="POST",
        summary="Classify a list of texts",
        openapi_extra={**request_body(BatchRequest), "parameters": [_TIMEOUT]},
        responses={
            200: _answered(
                {"label": {"0": "Positive", "1": "Negative"}, "score": {"0": 0.9875, "1": 0.9931}},
            ),
            **_PROBLEMS,
        },
    ),
]
