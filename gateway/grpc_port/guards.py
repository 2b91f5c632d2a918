"""Access control of the gRPC port: as over HTTP beside a gateway, by the control key if Triton runs alone."""

import asyncio
import hmac
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import grpc

from gateway.auth.key_cache import KnownKeys
from gateway.auth.wrong_keys import WrongKeys
from gateway.grpc_port.messages import RefusedCallError
from gateway.grpc_port.server import CONTROL, PUBLIC, Guard, Metadata, Turn
from gateway.http.callers import caller_of, scope_of_call
from gateway.http.problems import CallerLimitError, ModelTimeoutError, OverloadedError, WrongKeysError
from gateway.inference.predictor import Predictor
from gateway.load_control.admission import UnderWay
from gateway.load_control.backlog import work_of_length
from gateway.load_control.rate_limit import CallerLimits
from gateway.load_control.turns import Turns
from gateway.monitoring.metrics import Metrics
from serving.backend.cpu import usable_cores
from serving.client.triton_client import API_KEY_HEADER, CONTROL_KEY_HEADER
from serving.model_repo.protocol import MAX_BATCH_SIZE
from storage.api_keys import ANONYMOUS_NAME, Scope

MOST_LIVE = usable_cores() + 1
"""Maximum one-text calls of a caller at live priority, as many as HTTP makes for live requests; others run as bulk."""


@dataclass(eq=False, repr=False)
class GatewayGuard(Guard):
    """Checks of API keys, caller limits and backlog, shared with the gateway's HTTP side. Model control is refused."""

    keys: KnownKeys
    anonymous: frozenset[Scope]
    """Scopes of a call without a key."""
    limits: CallerLimits | None
    under_way: UnderWay
    wrong_keys: WrongKeys
    metrics: Metrics
    predictor: Predictor | None = None
    """The predictor whose batch backlog limits the work; None before the gateway starts."""
    _live: Counter[str] = field(default_factory=Counter, init=False)
    _turns: Turns = field(default_factory=lambda: Turns((usable_cores() + 1) * MAX_BATCH_SIZE), init=False)

    def check(self, method: str, metadata: Metadata, peer: str) -> str:
        """Return the caller's name if the caller, with its key or without one, may call `method`."""
        if method in CONTROL:
            raise _control_refused(
                "Only the pipeline changes models: use `python app.py promote`, or POST /models/VERSION/promote."
            )
        key = metadata.get(API_KEY_HEADER, "")
        if method in PUBLIC or (not key and Scope.PREDICT in self.anonymous):
            return ANONYMOUS_NAME
        if not key:
            raise RefusedCallError(
                grpc.StatusCode.UNAUTHENTICATED, f"An API key is needed, in the metadata {API_KEY_HEADER}."
            )
        caller = self.keys.find(_bytes(key))
        if caller is None:
            if not self.keys.complete:
                raise RefusedCallError(grpc.StatusCode.UNAVAILABLE, "The API keys are not loaded yet; try again.")
            try:
                self.wrong_keys.count(scope_of_call(ANONYMOUS_NAME, peer))
            except WrongKeysError as problem:
                raise RefusedCallError(grpc.StatusCode.UNAUTHENTICATED, problem.detail) from problem
            raise RefusedCallError(grpc.StatusCode.UNAUTHENTICATED, f"The API key in {API_KEY_HEADER} is wrong.")
        if Scope.PREDICT not in caller.scopes:
            raise RefusedCallError(grpc.StatusCode.PERMISSION_DENIED, "The API key lacks the scope predict.")
        return caller.name

    @asynccontextmanager
    async def admitted(self, caller: str, peer: str, lengths: Sequence[int], time_s: float) -> AsyncIterator[Turn]:
        """Count the texts for the caller and in the batch backlog that HTTP shares, then wait for the caller's turn.

        The metrics count the call by its status.
        The number of texts in the engine is limited as for HTTP batches, so that live requests do not wait long.
        All calls run as bulk, except up to `MOST_LIVE` one-text calls of each caller.
        """
        with self._measured(len(lengths)):
            async with self._in_turn(caller, peer, lengths, time_s) as turn:
                yield turn

    @contextmanager
    def _measured(self, texts: int) -> Iterator[None]:
        code = grpc.StatusCode.OK
        try:
            yield
        except BaseException as error:
            code = _code_of(error)
            raise
        finally:
            self.metrics.grpc_calls.labels(code.name).inc()
            self.metrics.grpc_texts.inc(texts)

    @asynccontextmanager
    async def _in_turn(self, caller: str, peer: str, lengths: Sequence[int], time_s: float) -> AsyncIterator[Turn]:
        predictor = self.predictor
        if predictor is None or self.under_way.ending:
            raise RefusedCallError(grpc.StatusCode.UNAVAILABLE, "The service is starting or shutting down; try again.")
        backlog = predictor.batch_backlog
        scope = scope_of_call(caller, peer)
        name = caller_of(scope)
        work = sum(map(work_of_length, lengths))
        turn = Turn()
        try:
            if self.limits is not None:
                self.limits.count(scope, len(lengths))
            backlog.enter(work, time_s, name)
        except (CallerLimitError, OverloadedError) as problem:
            raise RefusedCallError(grpc.StatusCode.RESOURCE_EXHAUSTED, problem.detail) from problem
        except ModelTimeoutError as problem:
            raise RefusedCallError(grpc.StatusCode.DEADLINE_EXCEEDED, problem.detail) from problem
        self.under_way.enter(name)
        try:
            async with AsyncExitStack() as stack:
                try:
                    await stack.enter_async_context(self._turns.turn(name, len(lengths), time_s))
                except TimeoutError as error:
                    raise RefusedCallError(
                        grpc.StatusCode.DEADLINE_EXCEEDED,
                        "The deadline passed while the texts waited in the queue; try again later.",
                    ) from error
                turn.is_bulk = len(lengths) > 1 or self._live[name] >= MOST_LIVE
                if not turn.is_bulk:
                    self._live[name] += 1
                    stack.callback(self._end_live, name)
                yield turn
        finally:
            self.under_way.leave(name)
            backlog.leave(work, name, turn.is_done)

    def _end_live(self, name: str) -> None:
        self._live[name] -= 1
        if not self._live[name]:
            del self._live[name]


_PIPELINE_NAME = "the pipeline"


class KeyGuard(Guard):
    """Access for a Triton that runs alone: predictions for all clients (loopback only), model control with the key."""

    def __init__(self, key: str) -> None:
        """Allow model control with `key`; if it is empty, refuse model control."""
        self._key = key.encode()

    def check(self, method: str, metadata: Metadata, _peer: str) -> str:
        """Return the caller's name; refuse model control without the right key."""
        if self.controls(metadata):
            return _PIPELINE_NAME
        if method in CONTROL:
            raise _control_refused(
                "Model control needs the key in SENTIMENT_TRITON_KEY. Set the same key here and for the caller."
                if self._key
                else "Model control is off: this Triton was started without SENTIMENT_TRITON_KEY. Restart it with one."
            )
        return ANONYMOUS_NAME

    def controls(self, metadata: Metadata) -> bool:
        """Return whether the call has the control key. The comparison takes constant time, so it leaks nothing."""
        return bool(self._key) and hmac.compare_digest(self._key, _bytes(metadata.get(CONTROL_KEY_HEADER, "")))


def _code_of(error: BaseException) -> grpc.StatusCode:
    """Return the status code of the response to a call that ends with `error`."""
    if isinstance(error, RefusedCallError):
        return error.code
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code()
    return grpc.StatusCode.CANCELLED if isinstance(error, asyncio.CancelledError) else grpc.StatusCode.UNKNOWN


def _control_refused(reason: str) -> RefusedCallError:
    return RefusedCallError(grpc.StatusCode.PERMISSION_DENIED, reason)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
