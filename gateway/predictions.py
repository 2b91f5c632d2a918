"""`POST /predict/live` and `POST /predict/batch`."""

import asyncio
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import orjson
from fastapi import Request, Response
from starlette.types import Receive, Send
from starlette.types import Scope as RequestScope

from gateway import server_timing
from gateway.admission import Route as BoundedRoute
from gateway.batch_splitting import TextsRefusedError
from gateway.deadlines import TIMEOUT_HEADER, time_allowed_s, unless_client_leaves
from gateway.deps import DirectRoute, get_limits, get_predictor
from gateway.inference import Prediction
from gateway.openapi import parameter, problem_responses, request_body
from gateway.predictor import Predictor
from gateway.problems import (
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
from gateway.request_body import read_body
from gateway.schemas import BatchRequest, LiveRequest, Predictions
from gateway.texts import batch_texts, live_text
from serving.triton_client import TextRefusedError
from storage.api_keys import Scope

LIVE_PATH = "/predict/live"
BATCH_PATH = "/predict/batch"
VERSION_HEADER = "X-Model-Version"
TRUNCATED_HEADER = "X-Truncated-Texts"

_LIVE_ANSWERS = 8_192
"""Known answers to live requests that are kept as they were written: there are hardly more, for the score has 4
decimals, and all texts with one label and score share one. Writing it anew took 4 of the 25 µs that the app spends on
a known text."""

_TOLD = 4
"""Of the fields of a prediction, the first ones are told."""


class _Answer(Response):
    """An answer that is given many times: what a middleware does to its headers, it does to a copy."""

    media_type = "application/json"

    async def __call__(self, _scope: RequestScope, _receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers.copy()})
        await send({"type": "http.response.body", "body": self.body})


async def predict_live(request: Request) -> Response:
    """Classify one text as soon as possible. A text longer than the model reads is cut, and a header says so."""
    predictor = get_predictor(request)
    deadline = _deadline(request, predictor.live_deadline_s)
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
    """Classify a list of texts, all by one version of the model. Texts longer than the model reads are cut."""
    predictor = get_predictor(request)
    deadline = _deadline(request, predictor.batch_deadline_s)
    texts = batch_texts(await read_body(request))
    limits = get_limits(request)
    if limits is not None:
        limits.count(request.scope, len(texts) - 1)  # one was counted when the request came
    timing = server_timing.begin()
    try:
        predictions = await unless_client_leaves(request.receive, predictor.predict_batch(texts, deadline))
    except TextsRefusedError as error:
        raise InvalidFieldsError(
            [FieldError(f"texts[{position}]", _refusal(reason)) for position, reason in error.refusals.items()]
        ) from error
    return _answer(predictions, timing.header())


def bounded_routes(predictor: Predictor) -> dict[str, BoundedRoute]:
    """The routes whose work is bounded, by path."""

    def is_known(body: bytes) -> bool:
        try:
            return predictor.knows(live_text(body))
        except ProblemError:
            return False

    return {
        LIVE_PATH: BoundedRoute(predictor.live_backlog, predictor.live_deadline_s, is_known),
        BATCH_PATH: BoundedRoute(predictor.batch_backlog, predictor.batch_deadline_s),
    }


def _deadline(request: Request, longest_s: float) -> float:
    """Until when a request must be answered, in the event loop's time."""
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
    """Write ascending numbers as `0,3-7`: one by one, those of the longest list would not fit a proxy's headers."""
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
                "description": "The version of the model that answered.",
                "required": True,
                "schema": {"type": "integer", "minimum": 1},
                "example": 1,
            },
            server_timing.HEADER: {
                "description": "Milliseconds that the texts waited for their turn (queue), were tokenized, and were "
                "run (graph), and all together (total); cache;desc=hit where the model was not asked.",
                "required": True,
                "schema": {"type": "string"},
                "example": "queue;dur=0.31, tokenize;dur=0.12, graph;dur=3.40, total;dur=4.52",
            },
            TRUNCATED_HEADER: {
                "description": "Positions of the texts that were cut, for they are longer than the model reads, as "
                "0,3-7; absent where none was.",
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
    "Milliseconds that the answer may take; what could only be answered later is refused. The service's own deadline, "
    "if it is shorter, counts.",
)

routes = [
    DirectRoute(
        LIVE_PATH,
        predict_live,
        scope=Scope.PREDICT,
        methods=["POST"],
        operation_id="predict_live",
        summary="Classify one text",
        tags=["predictions"],
        openapi_extra={**request_body(LiveRequest), "parameters": [_TIMEOUT]},
        responses={200: _answered({"label": {"0": "Positive"}, "score": {"0": 0.9875}}), **_PROBLEMS},
    ),
    DirectRoute(
        BATCH_PATH,
        predict_batch,
        scope=Scope.PREDICT,
        methods=["POST"],
        operation_id="predict_batch",
        summary="Classify a list of texts",
        tags=["predictions"],
        openapi_extra={**request_body(BatchRequest), "parameters": [_TIMEOUT]},
        responses={
            200: _answered(
                {"label": {"0": "Positive", "1": "Negative"}, "score": {"0": 0.9875, "1": 0.9931}},
            ),
            **_PROBLEMS,
        },
    ),
]
