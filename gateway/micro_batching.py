"""Takes live requests that wait at the same time into one call, and makes none wait that need not.

A call has costs of its own, so requests should share them. The engine behind Triton
queues texts, not calls, and fills its rows from all of them; so nothing is gained by holding requests back until a
call is full. While no call is under way, a request goes at once. Otherwise it would only wait in the engine's queue,
and so waits here for a twentieth of the time that a call takes, for others to go with it.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import tracing
from gateway.backlog import Backlog, work_of
from gateway.inference import Model, Outcomes, Prediction
from gateway.metrics import Metrics
from gateway.server_timing import Timing, current_timings
from request_context import current_request
from serving.triton_client import TritonTimeoutError, TritonUnavailableError

MOST_TEXTS = 16
"""In a call: about as many as a core runs at a time. The texts of a call are answered together, so those of a larger
one would wait for a second run."""
MOST_GATHERING_S = 0.005
GATHERING_SHARE = 0.05
"""Of the duration of the call that ended last."""


_Call = asyncio.Task[Outcomes]


@dataclass(slots=True)
class _Waiting:
    text: str
    work: int
    arrived: float
    deadline: float
    answer: asyncio.Future[Prediction]
    request: str
    """Its id."""
    span: Any
    """That of the request, where there are traces."""
    timings: tuple[Timing, ...]
    batch: "_Batch | None" = None


@dataclass(slots=True)
class _Batch:
    """The requests of a call."""

    texts: dict[str, list[_Waiting]]
    """By their texts: equal ones are inferred once."""
    call: _Call | None = None

    def requests(self) -> Iterator[_Waiting]:
        return (waiting for same_text in self.texts.values() for waiting in same_text)


class MicroBatcher:
    """Answers single texts through calls of up to `MOST_TEXTS`; make and use it within one event loop."""

    def __init__(self, model: Model, backlog: Backlog, metrics: Metrics) -> None:
        """Answer by `model` what finds room in `backlog`; how long requests wait is told in `metrics`."""
        self._model = model
        self._backlog = backlog
        self._queue: deque[_Waiting] = deque()
        self._observe_wait = metrics.micro_batch_wait.observe
        self._calls: set[_Call] = set()
        self._call_s = 0.0
        self._start: asyncio.Handle | None = None

    @property
    def waiting(self) -> int:
        """Requests that wait for their call."""
        return len(self._queue)

    async def predict(self, text: str, deadline: float) -> Prediction:
        """Answer `text` until `deadline`, a time of the event loop's clock. Cancelled, it costs no inference.

        Raises:
            OverloadedError: too much is to be done before.
            TextRefusedError: the model refuses the text.
            TritonUnavailableError: nobody can answer now.
            TritonTimeoutError: no answer came in time.
            ModelTimeoutError: none can come in time.
        """
        loop = asyncio.get_running_loop()
        now, answer = loop.time(), loop.create_future()
        origin = current_request.get(), tracing.here(), current_timings.get()
        waiting = _Waiting(text, work_of(text), now, deadline, answer, *origin)
        self._backlog.enter(waiting.work, deadline - now)
        self._queue.append(waiting)
        if self._start is None:
            gathering_s = min(MOST_GATHERING_S, GATHERING_SHARE * self._call_s) if self._calls else 0.0
            # Not at this instant even when alone: those that arrived in the same turn of the event loop go together.
            self._start = loop.call_later(gathering_s, self._start_calls)
        elif len(self._queue) == MOST_TEXTS:
            self._start.cancel()
            self._start = loop.call_soon(self._start_calls)
        expiry = loop.call_at(deadline, _expire, waiting.answer)
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            _cancel_call_for_nobody(waiting.batch)
            raise
        finally:
            expiry.cancel()

    def _start_calls(self) -> None:
        self._start = None
        loop = asyncio.get_running_loop()
        while batch := self._take_batch():
            # Each request keeps its own deadline by its timer; the call may serve those with time left.
            deadline = max(waiting.deadline for waiting in batch.requests())
            batch.call = loop.create_task(self._infer(batch, deadline))
            self._calls.add(batch.call)
            batch.call.add_done_callback(partial(self._end_call, batch, loop.time()))

    async def _infer(self, batch: _Batch, deadline: float) -> Outcomes:
        """Ask the model in the name of all requests of the call."""
        requests = list(batch.requests())
        texts = list(batch.texts)
        current_request.set(",".join(waiting.request for waiting in requests[:MOST_TEXTS]))
        current_timings.set(tuple(timing for waiting in requests for timing in waiting.timings))
        first, *others = (waiting.span for waiting in requests)
        with tracing.span("answer together", parent=first, links=others, attributes={"sentiment.texts": len(texts)}):
            return await self._model.infer(texts, deadline)

    def _take_batch(self) -> _Batch | None:
        batch = _Batch({})
        now = asyncio.get_running_loop().time()
        while self._queue and (len(batch.texts) < MOST_TEXTS or self._queue[0].text in batch.texts):
            waiting = self._queue.popleft()
            if waiting.answer.done():
                self._backlog.leave(waiting.work, done=False)
            else:
                self._observe_wait(now - waiting.arrived)
                waiting.batch = batch
                batch.texts.setdefault(waiting.text, []).append(waiting)
        return batch if batch.texts else None

    def _end_call(self, batch: _Batch, started: float, call: _Call) -> None:
        self._calls.discard(call)
        self._call_s = asyncio.get_running_loop().time() - started
        if not self._calls and self._start is not None:
            # Before the answers are given, for it takes milliseconds until they are written.
            self._start.cancel()
            self._start_calls()
        error = TritonUnavailableError("the gateway is ending") if call.cancelled() else call.exception()
        for waiting in batch.requests():
            self._backlog.leave(waiting.work, done=error is None)
            outcome = error or call.result()[waiting.text]
            if waiting.answer.done():
                continue
            if isinstance(outcome, Prediction):
                waiting.answer.set_result(outcome)
            else:
                waiting.answer.set_exception(outcome)


def _cancel_call_for_nobody(batch: _Batch | None) -> None:
    if batch is not None and batch.call is not None and all(waiting.answer.done() for waiting in batch.requests()):
        batch.call.cancel()


def _expire(answer: asyncio.Future[Prediction]) -> None:
    if not answer.done():
        answer.set_exception(TritonTimeoutError("no answer before the deadline"))
