"""The gRPC port for programs. It forwards predictions to Triton, which has no port of its own.

The port stays open as long as the pipeline runs, so that no other account can take it while Triton restarts. It
forwards a few of Triton's methods, and inference requests with texts for the deployed model. It refuses everything
else: shared memory, sequences, other models. Messages are forwarded as unchanged bytes in both directions, and Triton's
errors are returned as they are.
"""

import asyncio
import resource
import struct
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from common.errors import PipelineError
from gateway.grpc_port.messages import Reading, RefusedCallError
from gateway.http.callers import caller_of, scope_of_call
from serving.client.errors import details_of
from serving.client.triton_client import open_channel
from serving.client.uncancelled_calls import INFER, UncancelledCalls, encoded_parameter
from serving.model_repo.protocol import BULK, CALL, CHALLENGER_NAME, MAX_BATCH_SIZE, MODEL_NAME, TIME_HAS_PASSED
from serving.model_repo.texts import MAX_CHARACTERS

HOST = "127.0.0.1"
MOST_BYTES = MAX_BATCH_SIZE * (4 * MAX_CHARACTERS + 4) + 65_536
"""Maximum message size: a full batch of the longest texts that HTTP accepts, at four bytes per character."""
MOST_CALLS = 512
"""Maximum concurrent calls; further calls are refused at once."""
_MOST_STREAMS = 2 * MOST_CALLS
"""Maximum streams of a connection. gRPC counts ended ones until it frees them, and resets new ones over the maximum
without a reason. So it is above `MOST_CALLS`, which refuses with one."""
_MOST_CONNECTIONS = 512
"""Maximum connections, or a quarter of the process's file descriptors if fewer, to leave room for HTTP."""
_HANDSHAKE_MS = 5_000
"""Time within which a new connection must start HTTP/2."""
_IDLE_MS = 60_000
"""Time after which a connection without calls is closed. Clients reconnect at their next call."""
MOST_BYTES_UNDER_WAY = 8 * MOST_BYTES
_MOST_METADATA_BYTES = 16_384
_GRACE_S = 1.0
_SERVICE = "/inference.GRPCInferenceService/"
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
PUBLIC = frozenset({*(_SERVICE + name for name in ("ServerLive", "ServerReady", "ModelReady")), _HEALTH_CHECK})
"""Methods that need no API key."""
PREDICT = frozenset(
    _SERVICE + name for name in ("ModelInfer", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics")
)
CONTROL = frozenset(_SERVICE + name for name in ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"))
_OF_A_MODEL: dict[str, Any] = {
    _SERVICE + "ModelReady": service_pb2.ModelReadyRequest,
    _SERVICE + "ModelMetadata": service_pb2.ModelMetadataRequest,
    _SERVICE + "ModelConfig": service_pb2.ModelConfigRequest,
    _SERVICE + "ModelStatistics": service_pb2.ModelStatisticsRequest,
}
_PARAMETERS = frozenset({"timeout", "priority", BULK, CALL})
_MOST_OUTPUTS = 8
"""Maximum outputs in a request, slightly more than the model has: Triton compares each output with all others."""
_MOST_FIELDS = 64
_RAW_CONTENTS = service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_QUICKLY_PARSED_BYTES = 65_536
_MOST_PARSED_BYTES = 2**20
_BULK_PARAMETER = encoded_parameter(BULK, service_pb2.InferParameter(bool_param=True))
_PASSED_METADATA = frozenset({"traceparent", "tracestate", "baggage"})

Metadata = Mapping[str, str | bytes]


@dataclass
class Turn:
    """An admitted call, which may go to Triton."""

    is_bulk: bool = False
    """True if the call runs as bulk, so that live requests go first."""
    is_done: bool = False
    """True if the call succeeded."""


class Guard(ABC):
    """Access control and limits of the port."""

    @abstractmethod
    def check(self, method: str, metadata: Metadata, peer: str) -> str:
        """Return the caller's name.

        Raises:
            RefusedCallError: the caller may not call `method`.
        """

    def controls(self, _metadata: Metadata) -> bool:
        """Return whether the call comes from another process of the pipeline; beside a gateway, none does."""
        return False

    @asynccontextmanager
    async def admitted(self, _caller: str, _peer: str, _lengths: Sequence[int], _time_s: float) -> AsyncIterator[Turn]:
        """Count a call while the block runs. The block sets `is_done` of its `Turn` if the call succeeded.

        Without a gateway, every call is admitted: the gateways in front of this port limit the work.

        Raises:
            RefusedCallError: there is no room for the call in time, or the caller is over a limit.
        """
        yield Turn()


class GrpcFront(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The gRPC server of the port. Create and use it within one running event loop."""

    def __init__(self, port: int, triton: str, guard: Guard, longest_s: float) -> None:
        """Forward calls to the Triton at the address `triton`; each call has at most `longest_s` seconds."""
        self._port = port
        self._guard = guard
        self._longest_s = longest_s
        self._channel = open_channel(triton)
        self._calls = UncancelledCalls(self._channel)
        self._reading = Reading()
        self._bytes_under_way = 0
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._server = grpc.aio.server(
            handlers=[self],
            options=[
                # With SO_REUSEPORT, a second process of the same user could listen too and get part of the connections.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MOST_BYTES),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", _MOST_METADATA_BYTES),
                ("grpc.max_concurrent_streams", _MOST_STREAMS),
                ("grpc.max_allowed_incoming_connections", min(_MOST_CONNECTIONS, descriptors // 4)),
                ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
                ("grpc.max_connection_idle_ms", _IDLE_MS),
            ],
            maximum_concurrent_rpcs=MOST_CALLS,
        )
        self._handlers = {method: self._handler(method) for method in PUBLIC | PREDICT | CONTROL}
        self._refused = grpc.stream_stream_rpc_method_handler(_refuse_method)

    async def start(self) -> None:
        """Bind the port and start the server.

        Raises:
            PipelineError: the port is in use.
        """
        try:
            bound = self._server.add_insecure_port(f"{HOST}:{self._port}")
        except RuntimeError:
            bound = 0
        if bound != self._port:
            raise PipelineError(
                f"The gRPC port for programs, {HOST}:{self._port}, is in use. Stop the program that uses it, or change "
                "SENTIMENT_PORT: this port is the one after it."
            )
        await self._server.start()

    async def stop(self) -> None:
        """Release the port. Calls that still run after one second are cancelled."""
        await self._server.stop(_GRACE_S)
        await self._channel.close()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method."""
        return self._handlers.get(handler_call_details.method, self._refused)

    def _handler(self, method: str) -> Any:
        call = self._channel.unary_unary(method)

        async def answer(_: object, context: grpc.aio.ServicerContext) -> bytes:
            try:
                return await self._pass(method, call, context)
            except RefusedCallError as error:
                await context.abort(error.code, str(error))
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), details_of(error))
            raise AssertionError("abort raises")

        # Declared as a request stream, because gRPC then reads the message only when `context.read` is called.
        return grpc.stream_unary_rpc_method_handler(answer)

    async def _pass(
        self, method: str, call: Callable[..., Awaitable[bytes]], context: grpc.aio.ServicerContext
    ) -> bytes:
        metadata: dict[str, str | bytes] = dict(context.invocation_metadata() or ())
        caller = self._guard.check(method, metadata, context.peer())
        request = await self._read(context, caller_of(scope_of_call(caller, context.peer())))
        passed = tuple((name, value) for name, value in metadata.items() if name in _PASSED_METADATA)
        time_left = context.time_remaining()
        if method in CONTROL:
            return await call(request, timeout=time_left, metadata=passed)
        time_s = self._longest_s if time_left is None else min(time_left, self._longest_s)
        models = {MODEL_NAME}
        if self._guard.controls(metadata):
            models.add(CHALLENGER_NAME)
        if method != INFER:
            if len(request) > _QUICKLY_PARSED_BYTES:
                raise _invalid(f"The message is over {_QUICKLY_PARSED_BYTES:,} bytes long; send a shorter one.")
            if method in _OF_A_MODEL:
                _check_model(_parsed(_OF_A_MODEL[method], request).name, models)
            return await call(request, timeout=time_s, metadata=passed)
        model, lengths = model_and_lengths(request, models)
        deadline = asyncio.get_running_loop().time() + time_s
        admitted = self._guard.admitted(caller, context.peer(), lengths, time_s)
        with self._room_for(request):
            async with admitted as turn:
                time_s = deadline - asyncio.get_running_loop().time()
                # Appended, so that the caller cannot override it.
                request += _BULK_PARAMETER if turn.is_bulk else b""
                try:
                    answer = await self._calls.infer(request, model, time_s, passed)
                except TimeoutError:
                    raise RefusedCallError(grpc.StatusCode.DEADLINE_EXCEEDED, TIME_HAS_PASSED) from None
                turn.is_done = True
                return answer

    async def _read(self, context: grpc.aio.ServicerContext, caller: str) -> bytes:
        """Read the request message. Few messages are read at the same time, which limits their memory."""
        request: Any = await self._reading.read(caller, context.read)
        if request is grpc.aio.EOF:
            raise _invalid("The call has no message.")
        return bytes(request)

    @contextmanager
    def _room_for(self, request: bytes) -> Iterator[None]:
        if self._bytes_under_way and self._bytes_under_way + len(request) > MOST_BYTES_UNDER_WAY:
            raise RefusedCallError(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many bytes are in progress; try again.")
        self._bytes_under_way += len(request)
        try:
            yield
        finally:
            self._bytes_under_way -= len(request)


def model_and_lengths(request: bytes, models: set[str]) -> tuple[str, list[int]]:
    """Return the model of an inference request and the length of each of its texts in bytes.

    Raises:
        RefusedCallError: the request is invalid, or for none of `models`; the message says what is wrong.
    """
    _check_fields(request)
    parsed = _parsed(service_pb2.ModelInferRequest, request)
    _check_model(parsed.model_name, models)
    if len(parsed.outputs) > _MOST_OUTPUTS:
        raise _invalid(f"The request names {len(parsed.outputs)} outputs; at most {_MOST_OUTPUTS} are allowed.")
    others = sorted(set(parsed.parameters) - _PARAMETERS)
    for item in (*parsed.inputs, *parsed.outputs):
        others += [f"{name} of {item.name}" for name in sorted(item.parameters)]
    if others:
        raise _invalid(
            f"The parameter {others[0][:100]} is not allowed: shared memory, sequences and classification are off. "
            "Send the texts in the request, without this parameter."
        )
    if len(parsed.inputs) != 1 or parsed.inputs[0].name != "TEXT" or parsed.inputs[0].datatype != "BYTES":
        raise _invalid("One input is needed: TEXT, with the datatype BYTES.")
    (text,) = parsed.inputs
    if len(text.shape) != 2 or text.shape[1] != 1 or not 1 <= text.shape[0] <= MAX_BATCH_SIZE:
        raise _invalid(
            f"The shape of TEXT is {list(text.shape)[:8]}; [n, 1] is needed, with n from 1 to {MAX_BATCH_SIZE}."
        )
    if parsed.raw_input_contents:
        lengths = _raw_lengths(parsed.raw_input_contents)
    else:
        lengths = [len(item) for item in text.contents.bytes_contents]
    if len(lengths) != text.shape[0]:
        raise _invalid(f"TEXT has {len(lengths)} texts, but its shape says {text.shape[0]}.")
    return parsed.model_name, lengths


def _check_fields(request: bytes) -> None:
    """Refuse a long message with many small fields: parsing 22 MB of empty outputs takes seconds.

    This counts the outermost fields of the protocol buffer (https://protobuf.dev/programming-guides/encoding). All
    fields except the raw contents, which are not parsed further, may have `_MOST_PARSED_BYTES` together.
    """
    if len(request) <= _QUICKLY_PARSED_BYTES:
        return
    position = parsed_bytes = 0
    try:
        for _ in range(_MOST_FIELDS):
            tag, position = _varint(request, position)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == 2:
                length, position = _varint(request, position)
                position += length
                parsed_bytes += 0 if number == _RAW_CONTENTS else length
            elif wire_type == 0:
                _, position = _varint(request, position)
            else:
                break  # the message has no fields of other wire types
            if position >= len(request) and parsed_bytes <= _MOST_PARSED_BYTES:
                return
    except IndexError:
        pass
    raise _invalid(
        f"The message has over {_MOST_FIELDS} fields, or over {_MOST_PARSED_BYTES:,} bytes outside raw_input_contents; "
        "send long texts there, as Triton's own clients do."
    )


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Decode the varint at `position`; return its value and the position after it.

    Raises:
        IndexError: the data end within the varint.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    return value, position


def _raw_lengths(contents: Any) -> list[int]:
    if len(contents) != 1:
        raise _invalid(f"One input is needed, but raw_input_contents has {len(contents)}.")
    data = contents[0]
    lengths: list[int] = []
    position = 0
    while position + 4 <= len(data) and len(lengths) <= MAX_BATCH_SIZE:
        (length,) = struct.unpack_from("<I", data, position)
        lengths.append(length)
        position += 4 + length
    if position != len(data):
        raise _invalid("The bytes of TEXT are not a list of texts, each preceded by its length in 4 bytes.")
    return lengths


def _parsed(kind: Any, request: bytes) -> Any:
    try:
        return kind.FromString(request)
    except DecodeError as error:
        raise _invalid(f"The message is not a valid {kind.DESCRIPTOR.name}.") from error


def _check_model(name: str, models: set[str]) -> None:
    if name not in models:
        raise RefusedCallError(
            grpc.StatusCode.NOT_FOUND, f"Request for unknown model: {name[:100]!r}; the model here is {MODEL_NAME!r}."
        )


def _invalid(reason: str) -> RefusedCallError:
    return RefusedCallError(grpc.StatusCode.INVALID_ARGUMENT, reason)


async def _refuse_method(_requests: Any, context: grpc.aio.ServicerContext) -> None:
    """Refuse a call without reading its message."""
    await context.abort(
        grpc.StatusCode.PERMISSION_DENIED,
        "This port accepts only predictions, and health and metadata calls. Only the pipeline changes models: use "
        "`python app.py promote`, or POST /models/VERSION/promote. Shared memory, trace and log settings are off.",
    )
