"""A gRPC client for one model of one Triton, with as little work per call as the protocol allows."""

import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import grpc
import numpy as np
from google.protobuf import text_format
from google.protobuf.json_format import MessageToJson
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from common import tracing
from common.request_context import current_request
from common.triton_addresses import UNIX
from serving.client import sockets
from serving.client.errors import (
    ControlRefusedError,
    LoadRefusedError,
    TritonTimeoutError,
    TritonUnavailableError,
    control_error,
    details_of,
    is_restricted,
    translated,
)
from serving.client.uncancelled_calls import INFER, Metadata, UncancelledCalls
from serving.model_repo.protocol import BULK, MODEL_NAME, TIME_HAS_PASSED, Phases

_CHANNEL_OPTIONS = [
    # Without this, gRPC calls even 127.0.0.1 through the proxy that `http_proxy` or `https_proxy` names.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Triton closes connections that send keepalive pings more often than every five minutes during a long call, such as
    # loading a large version ("Too many pings").
    ("grpc.keepalive_time_ms", 330_000),
    # Reconnect to a restarted Triton within a second, not after gRPC's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]
CONTROL_KEY_HEADER = "triton-grpc-protocol-sentiment-key"
"""Metadata key for the secret of a Triton that was started with `--grpc-restricted-protocol=…:sentiment-key=SECRET`."""
API_KEY_HEADER = "x-api-key"


@dataclass(frozen=True, slots=True)
class Classification:
    """The predictions for a list of texts, in the same order."""

    labels: list[str]
    scores: list[float]
    """Calibrated probability of each label, 0 to 1."""
    version: int
    """The model version that made the predictions."""
    truncated: list[int]
    """Positions of the texts that were longer than the model reads, and were truncated."""
    probabilities: bytes = b""
    """[texts, labels], little-endian float32, in the order of the version's labels."""
    phases: Phases | None = None
    """Durations of the request's phases in the engine; None if an older pipeline exported the version."""

    def by_text(self) -> list[list[float]]:
        """Decode the probabilities of each text; done on demand, because few callers need them."""
        rows: list[list[float]] = np.frombuffer(self.probabilities, dtype="<f4").reshape(len(self.labels), -1).tolist()
        return rows


_control_key = ""
"""This process's control key, from its settings."""


def set_control_key(key: str) -> None:
    """Set the model-control key that clients created from now on in this process send to Triton."""
    global _control_key
    _control_key = key


class TritonClient:
    """An asyncio client of one model of one Triton; create and use it within one running event loop."""

    def __init__(
        self,
        address: str,
        model: str = MODEL_NAME,
        *,
        api_key: str = "",
        control_key: str | None = None,
        cancels: bool = False,
    ) -> None:
        """Connect lazily to `address`, Triton's gRPC at `host:port` or `unix:/path`, for calls to `model`.

        Calls carry `api_key`, if there is one, and `control_key`, by default the process's own. With `cancels`,
        abandoned calls are cancelled; the pipeline's own gRPC port needs that to notice them.

        Raises:
            PipelineError: the directory of the `unix:/path` cannot be used, or another account has access to it.
        """
        self.address = address
        self._model = model
        control_key = _control_key if control_key is None else control_key
        self._keys: tuple[tuple[str, str], ...] = ((API_KEY_HEADER, api_key),) if api_key else ()
        if control_key:
            self._keys += ((CONTROL_KEY_HEADER, control_key),)
        self._channel = open_channel(address)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer = _cancellable_infer(self._channel) if cancels else UncancelledCalls(self._channel).infer

    async def classify(self, texts: Sequence[str], timeout_s: float, is_bulk: bool = False) -> Classification:
        """Classify up to MAX_BATCH_SIZE texts; the call carries the id of the current request.

        `is_bulk` marks the texts as part of a large job, so that short requests go first.

        After `timeout_s` seconds, or if this coroutine is cancelled, the model drops the texts not yet computed. The
        gRPC call itself is only cancelled if the client has `cancels` (see `serving.client.uncancelled_calls`).

        Raises:
            TextRefusedError: a text is empty or not valid.
            TritonUnavailableError: Triton cannot respond now; the call may be retried later.
            TritonTimeoutError: no response arrived within `timeout_s` seconds.
            KeyRefusedError: the API key is missing or refused.
        """
        try:
            metadata = (*tracing.headers().items(), *self._keys)
            request = _request(self._model, texts, timeout_s, is_bulk).SerializeToString()
            response = await self._infer(request, self._model, timeout_s, metadata)
        except TimeoutError:
            raise TritonTimeoutError(TIME_HAS_PASSED) from None
        except grpc.aio.AioRpcError as error:
            raise translated(error) from error
        return _classification(service_pb2.ModelInferResponse.FromString(response))

    async def is_live(self, timeout_s: float = 1.0) -> bool:
        """Return whether a Triton runs at the address, with or without the model."""
        try:
            request = service_pb2.ServerLiveRequest()
            return bool((await self._stub.ServerLive(request, timeout=timeout_s, metadata=self._keys)).live)
        except grpc.aio.AioRpcError:
            return False

    async def is_loaded(self, timeout_s: float = 1.0) -> bool:
        """Return whether Triton reports the model as ready; it still does so after its Python backend has died."""
        request = service_pb2.ModelReadyRequest(name=self._model)
        try:
            return bool((await self._stub.ModelReady(request, timeout=timeout_s, metadata=self._keys)).ready)
        except grpc.aio.AioRpcError:
            return False

    async def is_ready(self, timeout_s: float = 2.0) -> bool:
        """Send a probe text and return whether the model classifies it; `is_loaded` alone is not reliable."""
        if not await self.is_loaded():
            return False
        try:
            await self.classify(["ready?"], timeout_s)
        except (TritonUnavailableError, TritonTimeoutError):
            return False
        return True

    async def load_model(self, timeout_s: float, configuration: str | None = None) -> None:
        """Have Triton load the model; the version loaded before stays deployed meanwhile.

        Triton uses the model's configuration on disk, or `configuration`, in the same format, for this load only.

        Raises:
            LoadRefusedError: Triton could not load the model.
            TritonUnavailableError: Triton is down.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=self._model)
        if configuration is not None:
            parsed = text_format.Parse(configuration, model_config_pb2.ModelConfig())
            request.parameters["config"].string_param = MessageToJson(parsed, preserving_proto_field_name=True)
        try:
            await self._stub.RepositoryModelLoad(request, timeout=timeout_s, metadata=self._keys)
        except grpc.aio.AioRpcError as error:
            if is_restricted(error):
                raise ControlRefusedError from error
            is_lost = error.code() is grpc.StatusCode.UNAVAILABLE
            raise (TritonUnavailableError if is_lost else LoadRefusedError)(details_of(error)) from error

    async def unload_model(self, timeout_s: float) -> None:
        """Have Triton unload the model, loaded or not; earlier requests are completed.

        Raises:
            TritonUnavailableError: Triton is down.
        """
        try:
            request = service_pb2.RepositoryModelUnloadRequest(model_name=self._model)
            await self._stub.RepositoryModelUnload(request, timeout=timeout_s, metadata=self._keys)
        except grpc.aio.AioRpcError as error:
            raise control_error(error) from error

    async def loaded_versions(self, timeout_s: float = 2.0) -> set[int]:
        """Return the versions that Triton reports as ready: one, or briefly two during a switch.

        Raises:
            TritonUnavailableError: Triton is down.
        """
        try:
            request = service_pb2.RepositoryIndexRequest(ready=True)
            index = await self._stub.RepositoryIndex(request, timeout=timeout_s, metadata=self._keys)
        except grpc.aio.AioRpcError as error:
            raise control_error(error) from error
        return {int(model.version) for model in index.models if model.name == self._model and model.version}

    async def answered_calls(self, version: int, timeout_s: float = 2.0) -> int:
        """Return how many calls, from any client, a version has completed since Triton loaded it.

        Raises:
            TritonUnavailableError: Triton is down, or has not loaded the version.
        """
        request = service_pb2.ModelStatisticsRequest(name=self._model, version=str(version))
        try:
            statistics = await self._stub.ModelStatistics(request, timeout=timeout_s, metadata=self._keys)
        except grpc.aio.AioRpcError as error:
            raise TritonUnavailableError(error.details()) from error
        return sum(int(model.inference_stats.success.count) for model in statistics.model_stats)

    async def close(self, grace_s: float | None = None) -> None:
        """Close the connection; cancel calls in progress, after `grace_s` seconds if given."""
        await self._channel.close(grace_s)


def open_channel(address: str) -> grpc.aio.Channel:
    """Open a channel to `host:port` or `unix:/path`, without a limit on the message size.

    Raises:
        PipelineError: the directory of the `unix:/path` cannot be used, or another account has access to it.
    """
    target = sockets.grpc_target(address) if address.startswith(UNIX) else address
    return grpc.aio.insecure_channel(target, options=_CHANNEL_OPTIONS)


def _cancellable_infer(channel: grpc.aio.Channel) -> Callable[[bytes, str, float, Metadata], Awaitable[bytes]]:
    """Return a function like `UncancelledCalls.infer` whose calls are cancelled with their coroutine."""
    call = channel.unary_unary(INFER)

    async def infer(request: bytes, _model: str, timeout_s: float, metadata: Metadata) -> bytes:
        response: bytes = await call(request, timeout=timeout_s, metadata=metadata)
        return response

    return infer


def _request(model: str, texts: Sequence[str], timeout_s: float, is_bulk: bool) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model, id=current_request.get())
    # In addition to the gRPC deadline, which the model can only find out by polling Triton.
    request.parameters["timeout"].int64_param = max(1, int(1e6 * timeout_s))
    if is_bulk:
        request.parameters[BULK].bool_param = True
    text = request.inputs.add(name="TEXT", datatype="BYTES")
    text.shape.extend((len(texts), 1))
    # surrogatepass: a lone surrogate reaches the model as invalid UTF-8, and the model refuses it.
    encoded = [item.encode("utf-8", "surrogatepass") for item in texts]
    request.raw_input_contents.append(b"".join(struct.pack("<I", len(item)) + item for item in encoded))
    # Name no outputs, so that Triton returns all: the configuration of an older pipeline has no PHASES, and Triton
    # would refuse a request that names it.
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
    """Decode a BYTES tensor of Triton: each item is its length (4 bytes, little-endian) and then its bytes."""
    items = []
    start = 0
    while start < len(data):
        (length,) = struct.unpack_from("<I", data, start)
        start += 4
        items.append(data[start : start + length].decode())
        start += length
    return items
