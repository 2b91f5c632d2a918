"""Asks a model of Triton's over gRPC, with as little work a call as the protocol allows."""

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import numpy as np
from google.protobuf import text_format
from google.protobuf.json_format import MessageToJson
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

import tracing
from request_context import current_request
from serving.protocol import MODEL_NAME, TIME_HAS_PASSED, Phases

_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Triton closes the connection on those who ask for a sign of life more often than every five minutes while a call
    # takes long, as loading a large version does ("Too many pings").
    ("grpc.keepalive_time_ms", 330_000),
    # A Triton that restarts is tried again within a second, not after gRPC's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
_LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
_FAILED = {
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,  # an instance of the model died
    grpc.StatusCode.UNKNOWN,
}
_NOT_LOADED = "Request for unknown model"
"""Triton begins so under `NOT_FOUND`, and under `UNAVAILABLE` where it knew the model once."""


class TritonUnavailableError(Exception):
    """Triton cannot answer now: it is down, starting, or has no version of the model loaded."""


class NotLoadedError(TritonUnavailableError):
    """Triton runs, and has no version of the model loaded."""


class ModelFailedError(TritonUnavailableError):
    """Triton runs, and the model fails, or there is no room for what it is asked."""


class LoadRefusedError(TritonUnavailableError):
    """Triton could not load a version, and says why; what it served before it serves still."""


class TritonTimeoutError(Exception):
    """Triton did not answer within the time given."""


class TextRefusedError(Exception):
    """The model refused a text, and says why."""


@dataclass(frozen=True, slots=True)
class Classification:
    """The answer for a list of texts, in their order."""

    labels: list[str]
    scores: list[float]
    """Calibrated probability of each label, 0 to 1."""
    version: int
    """The version that gave the answer."""
    truncated: list[int]
    """Positions of the texts that were longer than the model reads, and were cut."""
    probabilities: bytes = b""
    """[texts, labels], little-endian float32, in the order of the version's labels"""
    phases: Phases | None = None
    """Where the engine's time went; none where its build is too old to tell."""

    def by_text(self) -> list[list[float]]:
        """The probabilities of each text; made when they are asked for, since hardly anybody does."""
        rows: list[list[float]] = np.frombuffer(self.probabilities, dtype="<f4").reshape(len(self.labels), -1).tolist()
        return rows


class TritonClient:
    """An asyncio client of one model of one Triton; make and use it within one running event loop."""

    def __init__(self, address: str, model: str = MODEL_NAME) -> None:
        """Connect lazily to `address`, the `host:port` of Triton's gRPC, to ask for `model`."""
        self.address = address
        self._model = model
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def classify(self, texts: Sequence[str], timeout_s: float) -> Classification:
        """Classify at most as many texts as the model's batch limit, in the name of the current request.

        When `timeout_s` has passed, or this is cancelled, the model computes no more for it.

        Raises:
            TextRefusedError: a text is empty or cannot be read.
            TritonUnavailableError: nobody can answer now; trying again later makes sense.
            TritonTimeoutError: no answer came within `timeout_s` seconds.
        """
        try:
            metadata = tuple(tracing.headers().items())
            response = await self._stub.ModelInfer(
                _request(self._model, texts, timeout_s), timeout=timeout_s, metadata=metadata
            )
        except grpc.aio.AioRpcError as error:
            raise _translated(error) from error
        return _classification(response)

    async def is_live(self, timeout_s: float = 1.0) -> bool:
        """Whether a Triton runs there, with or without the model."""
        try:
            return bool((await self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=timeout_s)).live)
        except grpc.aio.AioRpcError:
            return False

    async def is_loaded(self, timeout_s: float = 1.0) -> bool:
        """Whether Triton says that a version of the model is ready; it also does when its Python has died."""
        request = service_pb2.ModelReadyRequest(name=self._model)
        try:
            return bool((await self._stub.ModelReady(request, timeout=timeout_s)).ready)
        except grpc.aio.AioRpcError:
            return False

    async def is_ready(self, timeout_s: float = 2.0) -> bool:
        """Whether the model answers: asks it, since Triton's own word is not enough."""
        if not await self.is_loaded():
            return False
        try:
            await self.classify(["ready?"], timeout_s)
        except (TritonUnavailableError, TritonTimeoutError):
            return False
        return True

    async def wait_until_ready(self, timeout_s: float) -> bool:
        """Poll until the model is ready; false when `timeout_s` seconds passed without it."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not await self.is_ready():
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(0.1)
        return True

    async def load_model(self, timeout_s: float, configuration: str | None = None) -> None:
        """Have Triton load the model beside what it serves until then.

        It is loaded as its configuration on disk says, or by `configuration`, in the same format, this time.

        Raises:
            LoadRefusedError: Triton could not load it.
            TritonUnavailableError: Triton is down.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=self._model)
        if configuration is not None:
            parsed = text_format.Parse(configuration, model_config_pb2.ModelConfig())
            request.parameters["config"].string_param = MessageToJson(parsed, preserving_proto_field_name=True)
        try:
            await self._stub.RepositoryModelLoad(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            is_lost = error.code() is grpc.StatusCode.UNAVAILABLE
            raise (TritonUnavailableError if is_lost else LoadRefusedError)(error.details()) from error

    async def unload_model(self, timeout_s: float) -> None:
        """Have Triton forget the model, loaded or not; what it was asked before is answered.

        Raises:
            TritonUnavailableError: Triton is down.
        """
        try:
            request = service_pb2.RepositoryModelUnloadRequest(model_name=self._model)
            await self._stub.RepositoryModelUnload(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise TritonUnavailableError(error.details()) from error

    async def loaded_versions(self, timeout_s: float = 2.0) -> set[int]:
        """The versions that Triton says it would answer with: one, and two for a moment while it turns to another.

        Raises:
            TritonUnavailableError: Triton is down.
        """
        try:
            index = await self._stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise TritonUnavailableError(error.details()) from error
        return {int(model.version) for model in index.models if model.name == self._model and model.version}

    async def close(self, grace_s: float | None = None) -> None:
        """Close the connection; calls under way are cancelled, after `grace_s` where it is given."""
        await self._channel.close(grace_s)


def _request(model: str, texts: Sequence[str], timeout_s: float) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model, id=current_request.get())
    # Besides the call's own deadline, of which Triton tells the model only when it is asked.
    request.parameters["timeout"].int64_param = max(1, int(1e6 * timeout_s))
    text = request.inputs.add(name="TEXT", datatype="BYTES")
    text.shape.extend((len(texts), 1))
    # surrogatepass: a lone surrogate reaches the model as bytes that are not UTF-8, and is refused there.
    encoded = [item.encode("utf-8", "surrogatepass") for item in texts]
    request.raw_input_contents.append(b"".join(struct.pack("<I", len(item)) + item for item in encoded))
    # Of outputs none is named, so that all come that there are: a configuration that was written by an older pipeline
    # has no PHASES, and Triton would refuse to be asked for them.
    return request


def _classification(response: service_pb2.ModelInferResponse) -> Classification:
    raw = {output.name: data for output, data in zip(response.outputs, response.raw_output_contents, strict=True)}
    return Classification(
        labels=_byte_strings(raw["LABEL"]),
        scores=np.frombuffer(raw["SCORE"], dtype="<f4").tolist(),
        version=int(response.model_version),
        truncated=np.flatnonzero(np.frombuffer(raw["TRUNCATED"], dtype=bool)).tolist(),
        probabilities=raw["PROBABILITIES"],
        phases=Phases(*struct.unpack_from("<3f", raw["PHASES"])) if "PHASES" in raw else None,
    )


def _byte_strings(data: bytes) -> list[str]:
    """Decode Triton's BYTES tensors: each item is its length (4 bytes, little-endian) and then its bytes."""
    items = []
    start = 0
    while start < len(data):
        (length,) = struct.unpack_from("<I", data, start)
        start += 4
        items.append(data[start : start + length].decode())
        start += length
    return items


def _translated(error: grpc.aio.AioRpcError) -> Exception:
    details = error.details() or error.code().name
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        return TextRefusedError(details)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED or details == TIME_HAS_PASSED:
        return TritonTimeoutError(details)
    if error.code() is grpc.StatusCode.NOT_FOUND or (error.code() in _LOST and details.startswith(_NOT_LOADED)):
        return NotLoadedError(details)
    if error.code() in _FAILED:
        return ModelFailedError(details)
    if error.code() in _LOST:
        return TritonUnavailableError(details)
    unexpected: Exception = error
    return unexpected
