"""The deployed model, and what its answers tell the gateway about it: ready or not, and which version."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence

import tracing
from gateway.answer_cache import AnswerCache
from gateway.inference import Outcomes, Prediction, infer
from gateway.metrics import Metrics
from gateway.server_timing import current_timings
from serving.call_statistics import CallStatistics
from serving.replicas import PROBE, Replicas
from serving.triton_client import Classification, TextRefusedError, TritonTimeoutError, TritonUnavailableError

WATCH_INTERVAL_S = 1.0
"""Longest time without an answer of the model's before it is asked for a sign of life."""

DOWN_INTERVAL_S = 0.2
"""The same while it does not answer, so that one that is back is noticed at once."""

PROBE_TIMEOUT_S = 5.0
"""A model that is only busy answers something in this time: a short text overtakes long ones, and a run takes a
fraction of a second."""

log = logging.getLogger(__name__)


class DeployedModel:
    """The model in Triton; make and use it within one event loop.

    Triton's own word does not count: one whose Python has died calls the model ready and fails every call, and one
    that is changing versions tells of both. So a text is put to the model whenever requests, say because the cache
    answers them all, brought no news of it for `WATCH_INTERVAL_S`. The answer shows that it can answer, and which
    version does.

    It is the circuit breaker too: from a probe that failed until one is answered, nobody is made to wait for the
    model. A request that fails does not break the circuit, for the fault may be its own; it has the model probed.
    """

    def __init__(self, tritons: Replicas, cache: AnswerCache, statistics: CallStatistics, metrics: Metrics) -> None:
        """Ask `tritons`, count the calls, and fill `cache` with what the deployed version answers."""
        self._tritons = tritons
        self._cache = cache
        self._statistics = statistics
        self._metrics = metrics
        metrics.model_ready.set_function(lambda: self.ready)
        metrics.model_version.set_function(lambda: self._version or 0)
        metrics.active_calls.set_function(lambda: len(self._under_way))
        self._calls = 0
        self._under_way: set[asyncio.Task[object]] = set()
        self._given_up: set[asyncio.Task[object]] = set()
        self._newest_call = 0
        self._version: int | None = None
        self._heard_at = -WATCH_INTERVAL_S
        self._is_doubted = asyncio.Event()
        self.ready = False
        """Whether the model answered when it was asked for a sign of life, or after that."""
        self.failure: Exception | None = None
        """What it did instead when it was asked for one last; while there is one, the circuit is broken."""

    @property
    def version(self) -> int | None:
        """The version that answered last; none before the first answer."""
        return self._version

    def check_circuit(self) -> None:
        """Raise a TritonUnavailableError where it is known that nobody can answer now."""
        if self.failure is not None:
            raise TritonUnavailableError("the model did not answer when it was asked last")

    async def infer(self, texts: list[str], deadline: float) -> Outcomes:
        """Answer at most `MAX_BATCH_SIZE` distinct texts until `deadline`, a time of the event loop's clock.

        Raises:
            TritonUnavailableError: nobody can answer now.
            TritonTimeoutError: no answer came in time.
        """
        outcomes = await infer(self.classify, texts, deadline)
        for text, outcome in outcomes.items():
            if isinstance(outcome, Prediction):
                self._cache.put(text, outcome)
                self._metrics.answers.labels(outcome.label).inc()
        return outcomes

    async def watch(self) -> None:
        """Keep `ready` and the cache's version true, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._until_due()
            asked_at = loop.time()
            try:
                await self.classify([PROBE], PROBE_TIMEOUT_S)
            except Exception as error:
                # What was answered meanwhile shows that the model is only busy, or has recovered.
                if self._heard_at < asked_at:
                    self._break(error)

    async def _until_due(self) -> None:
        """Wait until a sign of life is needed."""
        loop = asyncio.get_running_loop()
        if self.failure is not None:
            await asyncio.sleep(DOWN_INTERVAL_S)
        while self.failure is None and not self._is_doubted.is_set():
            wait_s = self._heard_at + WATCH_INTERVAL_S - loop.time()
            if wait_s <= 0:
                break
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._is_doubted.wait(), wait_s)
        self._is_doubted.clear()

    async def classify(self, texts: Sequence[str], timeout_s: float) -> Classification:
        """Ask for at most `MAX_BATCH_SIZE` texts, all that the model tells of them; the cache gets none of it.

        Raises:
            TextRefusedError: the model refuses a text.
            TritonUnavailableError: nobody can answer now.
            TritonTimeoutError: no answer came in time.
        """
        self._calls += 1
        call = self._calls
        started = time.perf_counter()
        is_lone = len(texts) == 1 and not self._under_way
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        try:
            answer = await self._ask(texts, timeout_s)
        except TextRefusedError as error:
            self._hear()
            if len(texts) == 1:
                log.warning("The model refuses a text: %s", error)
            raise
        except TritonTimeoutError:
            # Tells no more than that this request's time was too short.
            self._count_failure()
            raise
        except asyncio.CancelledError:
            if task not in self._given_up:
                raise
            self._count_failure()
            raise TritonUnavailableError("the model has stopped answering") from None
        except Exception:
            self._is_doubted.set()
            self._count_failure()
            raise
        finally:
            self._under_way.discard(task)
            self._given_up.discard(task)
        self._hear()
        stayed_lone = is_lone and call == self._calls
        self._statistics.answered(answer.version, 1_000 * (time.perf_counter() - started) if stayed_lone else None)
        # Calls reach Triton in the order they start in, but end in any: one that started before the newest tells of
        # the past, and must not bring an old version back.
        if call > self._newest_call:
            self._newest_call = call
            if answer.version != self._version:
                log.info("Version %d answers.", answer.version)
                self._version = answer.version
                self._cache.turn_to(answer.version)
        return answer

    async def _ask(self, texts: Sequence[str], timeout_s: float) -> Classification:
        """Call Triton, and measure it."""
        outcome = "cancelled"
        started = time.perf_counter()
        try:
            with tracing.span("call model", kind="client", attributes={"sentiment.texts": len(texts)}) as tell:
                answer = await self._tritons.classify(texts, timeout_s)
                tell("sentiment.version", answer.version)
                for name, seconds in (answer.phases._asdict() if answer.phases else {}).items():
                    tell(f"sentiment.engine.{name}", seconds)
            outcome = "answered"
        except TextRefusedError:
            outcome = "refused"
            raise
        except TritonTimeoutError:
            outcome = "timeout"
            raise
        except Exception:
            outcome = "failed"
            raise
        finally:
            self._metrics.calls.labels(outcome).observe(time.perf_counter() - started)
        self._metrics.call_texts.observe(len(texts))
        if answer.phases is not None:
            self._metrics.observe_phases(answer.phases)
        for timing in current_timings.get():
            timing.add(started, answer.phases)
        return answer

    def _count_failure(self) -> None:
        if self._version is not None:
            self._statistics.failed(self._version)

    def _hear(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self.ready = True
        self.failure = None

    def _break(self, reason: Exception) -> None:
        """Have nobody wait for the model any more."""
        if type(reason) is not type(self.failure):
            # One that has not answered yet may be starting.
            log.log(logging.INFO if self._version is None else logging.WARNING, "The model does not answer: %s", reason)
        self.ready = False
        self.failure = reason
        self._given_up |= self._under_way
        for task in self._under_way:
            task.cancel()
