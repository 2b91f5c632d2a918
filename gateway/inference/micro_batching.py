"""Combines live requests that wait at the same time into one call, without needless delay.

Callers take turns: the requests of a caller that sends many wait behind those of others. Each call has overhead, so
requests should share calls. The engine behind Triton queues texts, not calls, and fills its rows from all of them.
So holding requests back until a call is full gains nothing. While no call is under way, a request is sent at once.
Otherwise it would only wait in the engine's queue, so it waits here for others, for a twentieth of a call's duration.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from common import tracing
from common.request_context import current_request
from gateway.http.callers import current_caller
from gateway.http.server_timing import Timing, current_timings
from gateway.inference.model import Model, Outcomes
from gateway.load_control.backlog import LONGEST_TEXT, Backlog, work_of
from gateway.load_control.turns import FairQueue
from gateway.monitoring.metrics import Metrics
from serving.backend.cpu import usable_cores
from serving.client.errors import TritonTimeoutError, TritonUnavailableError
from serving.client.prediction import Prediction

MOST_TEXTS = 16
"""Maximum texts of a call: about as many as a core runs at a time. The texts of a call get their responses together, so
those of a larger call would wait for a second run."""
MOST_WORK = LONGEST_TEXT
"""Maximum work of a call with more than one text, so that the call needs one run: a long text goes alone."""
MOST_CALLS = usable_cores() + 1
"""Maximum concurrent calls, for short texts and for long texts each: enough to keep all cores busy. Other requests wait
here, where callers take turns."""
LONG_WORK = LONGEST_TEXT // 4
"""A text with more work fills more than a usual row of the engine, and waits in a separate lane."""
MOST_GATHERING_S = 0.005
GATHERING_SHARE = 0.05
"""Time to wait for other requests, as a share of the duration of the last finished call."""


_Call = asyncio.Task[Outcomes]


@dataclass(slots=True)
class _Waiting:
    text: str
    work: int
    caller: str
    arrived: float
    deadline: float
    answer: asyncio.Future[Prediction]
    request: str
    """The request's ID."""
    span: Any
    """The request's span, if tracing is on."""
    timings: tuple[Timing, ...]
    batch: "_Batch | None" = None


@dataclass(slots=True)
class _Batch:
    """The requests of one call."""

    texts: dict[str, list[_Waiting]]
    """Requests by text: equal texts are inferred once."""
    work: int = 0
    call: _Call | None = None

    def has_room(self, waiting: _Waiting) -> bool:
        """Return whether the call has room for this request."""
        if not self.texts or waiting.text in self.texts:
            return True
        return len(self.texts) < MOST_TEXTS and self.work + waiting.work <= MOST_WORK

    def requests(self) -> Iterator[_Waiting]:
        return (waiting for same_text in self.texts.values() for waiting in same_text)


@dataclass
class _Lane:
    """Requests with short or with long texts: short texts never wait for the end of a call with a long one."""

    queue: FairQueue[_Waiting] = field(default_factory=FairQueue)
    calls: set[_Call] = field(default_factory=set)


class MicroBatcher:
    """Predicts single texts in calls of up to `MOST_TEXTS`. Create and use it within one event loop."""

    def __init__(self, model: Model, backlog: Backlog, metrics: Metrics) -> None:
        """Call `model` for requests that fit in `backlog`; record in `metrics` how long they wait."""
        self._model = model
        self._backlog = backlog
        self._short, self._long = self._lanes = _Lane(), _Lane()
        self._observe_wait = metrics.micro_batch_wait.observe
        self._call_s = 0.0
        self._start: asyncio.Handle | None = None

    @property
    def waiting(self) -> int:
        """Number of requests that wait for their call."""
        return sum(len(lane.queue) for lane in self._lanes)

    async def predict(self, text: str, deadline: float) -> Prediction:
        """Return the prediction for `text` before `deadline`, a time of the event loop's clock.

        If cancelled before its call starts, it costs no inference. A call is cancelled once nobody waits for it.

        Raises:
            OverloadedError: too much other work was accepted before.
            TextRefusedError: the model refused the text.
            TritonUnavailableError: no model can respond now.
            TritonTimeoutError: no response came in time.
            ModelTimeoutError: no response can come in time.
        """
        loop = asyncio.get_running_loop()
        now, answer = loop.time(), loop.create_future()
        origin = current_request.get(), tracing.here(), current_timings.get()
        caller = current_caller.get()
        waiting = _Waiting(text, work_of(text), caller, now, deadline, answer, *origin)
        self._backlog.enter(waiting.work, deadline - now, caller)
        lane = self._long if waiting.work > LONG_WORK else self._short
        lane.queue.put(caller, waiting)
        if self._start is None:
            gathering_s = min(MOST_GATHERING_S, GATHERING_SHARE * self._call_s) if lane.calls else 0.0
            # Not at once, even when alone: requests of the same event loop iteration share a call.
            self._start = loop.call_later(gathering_s, self._start_calls)
        elif len(lane.queue) == MOST_TEXTS:
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
        for lane in self._lanes:
            while len(lane.calls) < MOST_CALLS and (batch := self._take_batch(lane.queue)):
                # Each request's timer enforces its own deadline, so the call may use the latest one.
                deadline = max(waiting.deadline for waiting in batch.requests())
                batch.call = loop.create_task(self._infer(batch, deadline))
                lane.calls.add(batch.call)
                batch.call.add_done_callback(partial(self._end_call, lane, batch, loop.time()))

    async def _infer(self, batch: _Batch, deadline: float) -> Outcomes:
        """Call the model for all requests of the batch."""
        requests = list(batch.requests())
        texts = list(batch.texts)
        current_request.set(",".join(waiting.request for waiting in requests[:MOST_TEXTS]))
        current_timings.set(tuple(timing for waiting in requests for timing in waiting.timings))
        first, *others = (waiting.span for waiting in requests)
        with tracing.span("answer together", parent=first, links=others, attributes={"sentiment.texts": len(texts)}):
            return await self._model.predict(texts, deadline)

    def _take_batch(self, queue: FairQueue[_Waiting]) -> _Batch | None:
        batch = _Batch({})
        now = asyncio.get_running_loop().time()
        while queue and (queue.first().answer.done() or batch.has_room(queue.first())):
            waiting = queue.take()
            if waiting.answer.done():
                self._backlog.leave(waiting.work, waiting.caller, done=False)
            else:
                self._observe_wait(now - waiting.arrived)
                waiting.batch = batch
                batch.work += 0 if waiting.text in batch.texts else waiting.work
                batch.texts.setdefault(waiting.text, []).append(waiting)
        return batch if batch.texts else None

    def _end_call(self, lane: _Lane, batch: _Batch, started: float, call: _Call) -> None:
        lane.calls.discard(call)
        self._call_s = asyncio.get_running_loop().time() - started
        if lane.queue and (len(lane.calls) == MOST_CALLS - 1 or not lane.calls):
            # Next calls start before results are set, because writing the responses takes milliseconds.
            if self._start is not None:
                self._start.cancel()
            self._start_calls()
        error = TritonUnavailableError("the gateway is shutting down") if call.cancelled() else call.exception()
        for waiting in batch.requests():
            self._backlog.leave(waiting.work, waiting.caller, done=error is None)
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
        answer.set_exception(TritonTimeoutError("no response before the deadline"))
