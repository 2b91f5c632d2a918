"""Inference calls that are never cancelled, because a cancelled call can crash Triton.

Triton before 25.04 frees a call's state twice if the call is cancelled, or its gRPC deadline passes, while the response
is on its way (triton-inference-server/server, issues 7368 and 8034). The bundled Triton is older. So a call of this
module stays open until Triton responds. If the caller gives up, a second request tells the backend to drop the texts
that it has not computed (`serving.model_repo.protocol`).
"""

import asyncio
import secrets
from collections.abc import Iterable
from functools import partial
from itertools import count
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from serving.model_repo.protocol import ABANDONED, CALL

INFER = "/inference.GRPCInferenceService/ModelInfer"
_LONGEST_S = 60.0
"""Seconds that a call stays open after its time limit; a Triton that hangs is killed earlier."""
_PROCESS = secrets.token_hex(8)
_numbers = count()

Metadata = Iterable[tuple[str, str | bytes]]


class UncancelledCalls:
    """The inference calls of one channel; create and use it within one running event loop."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        """Use `channel` for the calls."""
        self._infer = channel.unary_unary(INFER)
        self._open: set[Any] = set()
        """Calls without a response. gRPC cancels a call that is garbage-collected."""

    async def infer(self, request: bytes, model: str, timeout_s: float, metadata: Metadata) -> bytes:
        """Send a serialized ModelInferRequest for `model` and return the serialized response.

        Raises:
            TimeoutError: no response came within `timeout_s` seconds.
            AioRpcError: Triton refused the call, or could not be reached.
        """
        loop = asyncio.get_running_loop()
        name = f"{_PROCESS}-{next(_numbers)}"
        ended: asyncio.Future[None] = loop.create_future()
        metadata = tuple(metadata)
        # Appended, so that clients of the gateway cannot choose the call's name.
        request += encoded_parameter(CALL, service_pb2.InferParameter(string_param=name))
        call = self._start(request, timeout_s + _LONGEST_S, metadata)
        call.add_done_callback(partial(_end, ended))
        timer = loop.call_later(max(0.0, timeout_s), _expire, ended)
        try:
            await ended
        except BaseException:
            if not call.done():
                self._start(_abandonment(model, name), _LONGEST_S, metadata)
            raise
        finally:
            timer.cancel()
        response: bytes = await call
        return response

    def _start(self, request: bytes, timeout_s: float, metadata: Metadata) -> Any:
        call = self._infer(request, timeout=timeout_s, metadata=metadata)
        self._open.add(call)
        call.add_done_callback(self._open.discard)
        return call


def _end(ended: "asyncio.Future[None]", _: object) -> None:
    if not ended.done():
        ended.set_result(None)


def _expire(ended: "asyncio.Future[None]") -> None:
    if not ended.done():
        ended.set_exception(TimeoutError())


def encoded_parameter(name: str, value: service_pb2.InferParameter) -> bytes:
    """Return bytes that set a parameter when they are appended to a serialized ModelInferRequest.

    If a parameter appears twice in a request, the last one counts.
    """
    return bytes(service_pb2.ModelInferRequest(parameters={name: value}).SerializeToString())


def _abandonment(model: str, name: str) -> bytes:
    """Return a request that names the abandoned call; Triton requires the model's input in every request."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.parameters[ABANDONED].string_param = name
    request.inputs.add(name="TEXT", datatype="BYTES", shape=(1, 1)).contents.bytes_contents.append(b"-")
    return bytes(request.SerializeToString())
