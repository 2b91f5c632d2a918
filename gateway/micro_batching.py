"""Takes live requests that wait at the same time into one call, and makes none wait that need not.

A call has costs of its own, so requests should share them. The engine behind Triton
queues texts, not calls, and fills its rows from all of them; so nothing is gained by holding requests back until a
call is full. While no call is under way, a request goes at once. Otherwise it would only wait in the engine's queue,
and so waits here for a twentieth of the time that a call takes, for others to go with it.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import tracing
from gateway.inference import Model, Outcomes, Prediction
from gateway.metrics import Metrics
from request_context import current_request
from serving.triton_client import TritonTimeoutError, TritonUnavailableError

MOST_TEXTS = 16
"""In a call: about as many as a core runs at a time. The texts of a call are answered together, so those of a larger
one would wait for a second run."""
MOST_GATHERING_S = 0.005
GATHERING_SHARE = 0.05
"""Of the duration of the call that ended last."""


class _Waiting(NamedTuple):
    text: str
    arrived: float
    deadline: float
    answer: asyncio.Future[Prediction]
    request: str
    """Its id."""
    span: Any
    """That of the request, where there are traces."""


_Batch = dict[str, list[_Waiting]]
"""The requests of a call by their texts: equal ones are inferred once."""


class MicroBatcher:
    """Answers single texts through calls of up to `MOST_TEXTS`; make and use it within one event loop."""

    def __init__(self, model: Model, metrics: Metrics) -> None:
        """Answer by `model`; the queue is told in `metrics`."""
        self._model = model
        self._queue: deque[_Waiting] = deque()
        self._observe_wait = metrics.micro_batch_wait.observe
        metrics.micro_batch_queue.set_function(lambda: len(self._queue))
        self._calls: set[asyncio.Task[Outcomes]] = set()
        self._call_s = 0.0
        self._start: asyncio.Handle | None = None

    async def predict(self, text: str, deadline: float) -> Prediction:
        """Answer `text` until `deadline`, a time of the event loop's clock. Cancelled, it costs no inference.

        Raises:
            TextRefusedError: the model refuses the text.
            TritonUnavailableError: nobody can answer now.
            TritonTimeoutError: no answer came in time.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Prediction] = loop.create_future()
        self._queue.append(_Waiting(text, loop.time(), deadline, answer, current_request.get(), tracing.here()))
        if self._start is None:
            gathering_s = min(MOST_GATHERING_S, GATHERING_SHARE * self._call_s) if self._calls else 0.0
            # Not at this instant even when alone: those that arrived in the same turn of the event loop go together.
            self._start = loop.call_later(gathering_s, self._start_calls)
        elif len(self._queue) == MOST_TEXTS:
            self._start.cancel()
            self._start = loop.call_soon(self._start_calls)
        expiry = loop.call_at(deadline, _expire, answer)
        try:
            return await answer
        finally:
            expiry.cancel()

    def _start_calls(self) -> None:
        self._start = None
        loop = asyncio.get_running_loop()
        while batch := self._take_batch():
            # Each request keeps its own deadline by its timer; the call may serve those with time left.
            deadline = max(waiting.deadline for waiting in _all(batch))
            call = loop.create_task(self._infer(batch, deadline))
            self._calls.add(call)
            call.add_done_callback(partial(self._end_call, batch, loop.time()))

    async def _infer(self, batch: _Batch, deadline: float) -> Outcomes:
        """Ask the model in the name of all requests of the call."""
        requests = list(_all(batch))
        current_request.set(",".join(waiting.request for waiting in requests[:MOST_TEXTS]))
        first, *others = (waiting.span for waiting in requests)
        with tracing.span("answer together", parent=first, links=others, attributes={"sentiment.texts": len(batch)}):
            return await self._model.infer(list(batch), deadline)

    def _take_batch(self) -> _Batch:
        batch: _Batch = {}
        now = asyncio.get_running_loop().time()
        while self._queue and (len(batch) < MOST_TEXTS or self._queue[0].text in batch):
            waiting = self._queue.popleft()
            if not waiting.answer.done():
                self._observe_wait(now - waiting.arrived)
                batch.setdefault(waiting.text, []).append(waiting)
        return batch

    def _end_call(self, batch: _Batch, started: float, call: asyncio.Task[Outcomes]) -> None:
        self._calls.discard(call)
        self._call_s = asyncio.get_running_loop().time() - started
        if not self._calls and self._start is not None:
            # Before the answers are given, for it takes milliseconds until they are written.
            self._start.cancel()
            self._start_calls()
        error = TritonUnavailableError("the gateway is ending") if call.cancelled() else call.exception()
        for waiting in _all(batch):
            outcome = error or call.result()[waiting.text]
            if waiting.answer.done():
                continue
            if isinstance(outcome, Prediction):
                waiting.answer.set_result(outcome)
            else:
                waiting.answer.set_exception(outcome)


def _all(batch: _Batch) -> Iterator[_Waiting]:
    return (waiting for same_text in batch.values() for waiting in same_text)


def _expire(answer: asyncio.Future[Prediction]) -> None:
    if not answer.done():
        answer.set_exception(TritonTimeoutError("no answer before the deadline"))
