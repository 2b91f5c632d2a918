"""Triton's entry point to the backend: passes requests to the engine and sends their responses."""

import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.backend.cpu import usable_cores
from serving.backend.engine import Engine
from serving.backend.engine_metrics import EngineMetrics
from serving.backend.reply import Reply
from serving.backend.requests import DroppedError, Probabilities, TextError
from serving.backend.variant_choice import AUTO, Wanted, choose_variant
from serving.model_repo.bundle import Bundle
from serving.model_repo.protocol import ABANDONED, BULK, CALL, MODEL_NAME, NOBODY_WAITS, TICKET
from serving.model_repo.repository import ModelRepository
from serving.model_repo.switch import wait_for_turn

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """One model version, in its own process, which uses all cores.

    `execute` returns before the texts are classified, so that Triton passes on the next requests and the engine can
    queue them. The engine's queue replaces Triton's batcher.
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Load the version and run each usual shape once; Triton switches to the version when this returns."""
        directory = Path(args["model_repository"]) / args["model_version"]
        choice = choose_variant(
            Bundle.load(directory),
            Wanted(os.environ.get("SENTIMENT_RUNTIME", AUTO), os.environ.get("SENTIMENT_PRECISION", AUTO)),
        )
        self._engine = Engine(directory, choice.variant, usable_cores())
        self._replies: dict[str, Reply] = {}
        """Pending responses by the clients' call names."""
        self._labels = np.array([label.encode() for label in self._engine.bundle.labels], dtype=object)
        pb_utils.Logger.log_info(
            f"sentiment version {args['model_version']}: {choice.variant} on {usable_cores()} cores ({choice.reason})"
            f"{'' if self._engine.first is None else f', after a first stage, {self._engine.first.variant}'}"
        )
        ticket = json.loads(args["model_config"])["parameters"].get(TICKET, {}).get("string_value")
        try:
            if args["model_name"] == MODEL_NAME:  # a candidate replaces no version
                wait_for_turn(ModelRepository(directory.parent.parent), int(args["model_version"]), ticket)
        except BaseException:
            self._engine.close()
            raise
        # Only now, because a cancelled load must publish no metrics.
        try:
            self._metrics: EngineMetrics | None = EngineMetrics(self._engine, args["model_version"], pb_utils)
        except pb_utils.TritonModelException as error:  # metrics are disabled in this Triton
            self._metrics = None
            pb_utils.Logger.log_warn(f"The engine's metrics cannot be told: {error}")

    def execute(self, requests: Sequence[Any]) -> None:
        """Submit the requests' texts to the engine; a bad text fails only its own request."""
        for request in requests:
            reply = Reply(request.get_response_sender(), _FINAL)
            parameters = json.loads(request.parameters() or "{}")
            if ABANDONED in parameters:
                if (abandoned := self._replies.get(parameters[ABANDONED])) is not None:
                    abandoned.abandon()
                reply.send(_refusal(NOBODY_WAITS, pb_utils.TritonError.CANCELLED))
                continue
            items = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().ravel()
            try:
                texts = [_decode(position, item) for position, item in enumerate(items)]
            except ValueError as error:
                reply.send(_refusal(str(error), pb_utils.TritonError.INVALID_ARG))
                continue
            timeout_us = request.timeout()
            answer = self._engine.submit(
                texts,
                timeout_us / 1e6 if timeout_us else math.inf,
                reply.is_wanted,
                is_bulk=bool(parameters.get(BULK)),
            )
            call = parameters.get(CALL, "")
            if call:
                self._replies[call] = reply
            wanted = frozenset(request.requested_output_names())
            answer.add_done_callback(partial(self._send, reply, call, request.request_id(), wanted))

    def finalize(self) -> None:
        """Stop the engine's threads; Triton calls this when no requests are in progress."""
        if self._metrics is not None:
            self._metrics.close()
        self._engine.close()

    def _send(
        self, reply: Reply, call: str, request_id: str, wanted: frozenset[str], answer: "Future[Probabilities]"
    ) -> None:
        self._replies.pop(call, None)
        reply.send(self._response(request_id, wanted, answer))

    def _response(self, request_id: str, wanted: frozenset[str], answer: "Future[Probabilities]") -> Any:
        error = answer.exception()
        if isinstance(error, DroppedError):
            return _refusal(str(error), pb_utils.TritonError.CANCELLED)
        if isinstance(error, TextError):
            return _refusal(str(error), pb_utils.TritonError.INVALID_ARG)
        if error is not None:
            pb_utils.Logger.log_error(f"request {request_id or 'without an id'}: {type(error).__name__}: {error}")
            return _refusal(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)
        probabilities, truncated, phases = answer.result().values, answer.result().truncated, answer.result().phases
        best = probabilities.argmax(axis=1)[:, None]
        outputs = {
            "LABEL": self._labels[best],
            "SCORE": np.take_along_axis(probabilities, best, axis=1),
            "PROBABILITIES": probabilities,
            "TRUNCATED": truncated[:, None],
            # One value per request, repeated for each text: Triton 24.10's Python backend has no response parameters.
            "PHASES": np.tile(np.array(phases, dtype=np.float32), (len(truncated), 1)),
        }
        # Send only requested outputs: Triton 24.10 frees the others without the GIL, and crashes if another thread
        # creates objects meanwhile.
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, values) for name, values in outputs.items() if name in wanted]
        )


def _refusal(reason: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(reason, code))


def _decode(position: int, item: bytes) -> str:
    try:
        text = item.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"TEXT[{position}] is not UTF-8: {error.reason} at byte {error.start}") from error
    if not text.strip():
        raise ValueError(f"TEXT[{position}] is empty; a text needs at least one character that is not a blank")
    return text
