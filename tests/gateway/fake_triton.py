"""A server of Triton's gRPC protocol that does what a test tells it. The end-to-end tests use the real Triton."""

import struct
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from serving.client.replicas import PROBE
from serving.client.triton_client import CONTROL_KEY_HEADER
from serving.model_repo.protocol import ABANDONED, CALL, CHALLENGER_NAME, MAX_BATCH_SIZE, NOBODY_WAITS

SCORE = 0.98754
MODEL_READS = 200
"""Characters, in place of tokens."""


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers `Negative` for a text with "terrible" in it, otherwise `Positive`."""

    def __init__(self) -> None:
        self._server: Any = None
        self.lock = threading.Lock()
        self.port = 0
        self.behave()

    def behave(self) -> None:
        """Do again what a healthy Triton does, and forget what was asked."""
        self.version = 1
        self.score = SCORE
        self.scores: dict[str, float] = {}
        """Scores of texts that differ from `score`."""
        self.refused: set[str] = set()
        self.error: grpc.StatusCode | None = None
        self.inference_error: grpc.StatusCode | None = None
        """The same, but Triton says that it lives and that the model is ready."""
        self.error_details = "secret: /opt/models"
        self.challenger = 2
        """The version that is loaded beside; it answers as the other one does, but for `otherwise`."""
        self.challenger_error: grpc.StatusCode | None = None
        self.challenger_details = "the challenger fails"
        self.challenger_delay_s = 0.0
        self.challenger_calls: list[list[str]] = []
        self.otherwise: set[str] = set()
        """Texts to which the challenger gives the other label."""
        self.delay_s = 0.0
        self.phases: tuple[float, float, float] | None = None
        """Seconds of tokenizing, queue and graph; an older build tells none."""
        self.before_answer: Callable[[list[str]], None] = lambda _texts: None
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.held: set[str] = set()
        """First texts of calls that wait for `may_answer`."""
        self.calls: list[list[str]] = []
        self.request_ids: list[str] = []
        """Of `calls`."""
        self.names: list[str] = []
        """Of `calls`, as the parameter `CALL` gives them."""
        self.abandoned: list[str] = []
        """Names of calls that nobody waits for any more, as clients have said."""
        self.cancelled: list[list[str]] = []
        """Calls that ended without a response: the client cancelled them, or their gRPC deadline passed."""
        self.traceparents: list[str] = []
        self.answered_calls = 0
        """Of all callers, as Triton's statistics tell."""
        self.probes = 0
        """Calls with which the gateway asked for a sign of life; `calls` leaves them out."""

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(grace=None).wait()

    def ServerLive(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerLiveResponse(live=True)

    def ModelReady(self, _request: Any, context: Any) -> Any:  # noqa: N802
        if self.error is not None:
            context.abort(self.error, "Request for unknown model: 'sentiment' is not found")
        return service_pb2.ModelReadyResponse(ready=True)

    def RepositoryIndex(self, _request: Any, context: Any) -> Any:  # noqa: N802
        """Refuse model control, as every Triton does to callers without its key."""
        context.abort(
            grpc.StatusCode.UNAVAILABLE, f"This protocol is restricted, expecting header '{CONTROL_KEY_HEADER}'"
        )

    def ModelStatistics(self, request: Any, _context: Any) -> Any:  # noqa: N802
        response = service_pb2.ModelStatisticsResponse()
        response.model_stats.add(name=request.name).inference_stats.success.count = self.answered_calls
        return response

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        if ABANDONED in request.parameters:
            self.abandoned.append(request.parameters[ABANDONED].string_param)
            context.abort(grpc.StatusCode.CANCELLED, NOBODY_WAITS)
        texts = _texts(request.raw_input_contents[0])
        responded: list[bool] = []
        context.add_callback(lambda: None if responded else self.cancelled.append(texts))
        assert 0 < len(texts) <= MAX_BATCH_SIZE
        if request.model_name == CHALLENGER_NAME:
            return self._challenge(texts, context)
        with self.lock:
            if texts == [PROBE]:
                self.probes += 1
            else:
                self.calls.append(texts)
                self.request_ids.append(request.id)
                self.names.append(request.parameters[CALL].string_param)
                self.traceparents.append(dict(context.invocation_metadata()).get("traceparent", ""))
                self.before_answer(texts)
            version, score, phases = self.version, self.score, self.phases
        time.sleep(self.delay_s)
        if texts[0] in self.held:
            assert self.may_answer.wait(10)
        if self.error is not None or self.inference_error is not None:
            context.abort(self.error or self.inference_error, self.error_details)
        for text in texts:
            if text in self.refused:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the model cannot read {text!r}")
        with self.lock:
            self.answered_calls += 1
            responded.append(True)
        return _response(texts, version, [self.scores.get(text, score) for text in texts], phases)

    def _challenge(self, texts: list[str], context: Any) -> Any:
        with self.lock:
            self.challenger_calls.append(texts)
        time.sleep(self.challenger_delay_s)
        if self.challenger_error is not None:
            context.abort(self.challenger_error, self.challenger_details)
        return _response(texts, self.challenger, [self.score] * len(texts), None, self.otherwise)


def _texts(data: bytes) -> list[str]:
    texts = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        texts.append(data[4 : 4 + length].decode())
        data = data[4 + length :]
    return texts


def _response(
    texts: list[str],
    version: int,
    scores: list[float],
    phases: tuple[float, float, float] | None,
    otherwise: Collection[str] = (),
) -> Any:
    response = service_pb2.ModelInferResponse(model_name="sentiment", model_version=str(version))
    labels = [b"Negative" if ("terrible" in text) != (text in otherwise) else b"Positive" for text in texts]
    response.outputs.add(name="LABEL", datatype="BYTES")
    response.raw_output_contents.append(b"".join(struct.pack("<I", len(label)) + label for label in labels))
    response.outputs.add(name="SCORE", datatype="FP32")
    response.raw_output_contents.append(np.array(scores, "<f4").tobytes())
    response.outputs.add(name="PROBABILITIES", datatype="FP32")
    pairs = [
        (score, 1 - score) if label == b"Negative" else (1 - score, score)
        for label, score in zip(labels, scores, strict=True)
    ]
    response.raw_output_contents.append(np.array(pairs, "<f4").tobytes())
    response.outputs.add(name="TRUNCATED", datatype="BOOL")
    response.raw_output_contents.append(bytes(len(text) > MODEL_READS for text in texts))
    if phases is not None:
        response.outputs.add(name="PHASES", datatype="FP32")
        response.raw_output_contents.append(np.tile(np.array(phases, "<f4"), len(texts)).tobytes())
    return response
