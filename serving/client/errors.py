"""The errors of calls to Triton, made from gRPC's status codes and Triton's messages."""

import grpc

from serving.client import sockets
from serving.model_repo.protocol import TIME_HAS_PASSED

_KEY_REFUSED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
_LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
_FAILED = {
    grpc.StatusCode.INTERNAL,  # a model instance died
    grpc.StatusCode.UNKNOWN,
}
_RESTRICTED = "This protocol is restricted"
"""Start of Triton's `UNAVAILABLE` message if the secret is missing or wrong."""
_NO_ROOM = "shared memory"
"""Part of Triton's `INTERNAL` message if its Python backend has no shared memory left for a request."""
_NOT_LOADED = "Request for unknown model"
"""Start of Triton's message if the model is not loaded: `NOT_FOUND`, or `UNAVAILABLE` if it was loaded before."""


class TritonUnavailableError(Exception):
    """Triton cannot respond now: it is down, starting, or has no model version loaded."""


class KeyRefusedError(Exception):
    """The API key is missing, wrong, or lacks the permission; the message says which."""


class NotLoadedError(TritonUnavailableError):
    """Triton runs, but has no model version loaded."""


class ModelFailedError(TritonUnavailableError):
    """Triton runs, but the model fails."""


class NoRoomError(TritonUnavailableError):
    """Triton runs, but has no memory or queue space left for the request; the request did not reach the model."""


class LoadRefusedError(TritonUnavailableError):
    """Triton could not load a version; the message says why. The version loaded before stays deployed."""


class ControlRefusedError(LoadRefusedError):
    """Triton refuses model control, because this process has no control key or a wrong one."""

    def __init__(self) -> None:
        """Build the message, which names the setting to correct."""
        super().__init__(
            "it refuses model control: SENTIMENT_TRITON_KEY is missing here, or is not the key that it was started with"
        )


class TritonTimeoutError(Exception):
    """Triton did not respond in time."""


class TextRefusedError(Exception):
    """The model refused a text; the message says why."""


def details_of(error: grpc.aio.AioRpcError) -> str:
    """Return the error message of Triton, or "Triton is down" instead of an internal socket path."""
    details = error.details() or error.code().name
    if error.code() is grpc.StatusCode.UNAVAILABLE and sockets.HELD in details:
        return "Triton is down, starting or restarting; try again"
    return str(details)


def translated(error: grpc.aio.AioRpcError) -> Exception:
    """Return the exception of this module for a failed inference call, or `error` itself if it is unexpected."""
    details = details_of(error)
    if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
        return TextRefusedError(details)
    if error.code() in _KEY_REFUSED:
        return KeyRefusedError(details)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED or details == TIME_HAS_PASSED:
        return TritonTimeoutError(details)
    if error.code() is grpc.StatusCode.NOT_FOUND or (error.code() in _LOST and details.startswith(_NOT_LOADED)):
        return NotLoadedError(details)
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED or (error.code() in _FAILED and _NO_ROOM in details):
        return NoRoomError(details)
    if error.code() in _FAILED:
        return ModelFailedError(details)
    if error.code() in _LOST:
        return TritonUnavailableError(details)
    unexpected: Exception = error
    return unexpected


def is_restricted(error: grpc.aio.AioRpcError) -> bool:
    """Return whether Triton refused a call for its missing or wrong key."""
    return error.code() in _KEY_REFUSED or (error.details() or "").startswith(_RESTRICTED)


def control_error(error: grpc.aio.AioRpcError) -> Exception:
    """Return the exception of this module for a failed call of Triton's model control."""
    return ControlRefusedError() if is_restricted(error) else TritonUnavailableError(details_of(error))
