"""The deployed model, whose readiness and version the gateway learns from its responses."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence

from common import tracing
from common.periodic import run_periodically
from gateway.http.server_timing import add_call
from gateway.inference.answer_cache import AnswerCache
from gateway.inference.model import Model
from gateway.monitoring.metrics import Metrics
from serving.client.call_statistics import CallStatistics
from serving.client.errors import ModelFailedError, TextRefusedError, TritonTimeoutError, TritonUnavailableError
from serving.client.replicas import PROBE, Replicas
from serving.client.triton_client import Classification

WATCH_INTERVAL_S = 1.0
"""Maximum time without a response from the model before it is probed."""

DOWN_INTERVAL_S = 0.2
"""Interval of the probes while the model does not respond, so that its recovery is noticed at once."""

PROBE_TIMEOUT_S = 5.0
"""A model that is only busy responds within this time: a short text overtakes long ones, and a run takes a fraction of
a second."""

log = logging.getLogger(__name__)


class DeployedModel(Model):
    """The model in Triton. Create and use it within one event loop.

    Triton's readiness API is not used: if the model's Python process has died, Triton still reports it as ready and
    fails every call; during a version change it reports both versions. So a probe text is sent whenever no call got a
    response for `WATCH_INTERVAL_S`, for example because the cache handles all requests. The response proves that the
    model works, and names its version.

    The class is also the circuit breaker: after a failed probe, requests fail at once until a probe succeeds. A failed
    request does not open the circuit, because the fault may be its own; it triggers a probe.
    """

    def __init__(self, tritons: Replicas, cache: AnswerCache, statistics: CallStatistics, metrics: Metrics) -> None:
        """Call `tritons`, count the calls, and fill `cache` with the deployed version's predictions."""
        super().__init__(cache, metrics)
        self._tritons = tritons
        self._statistics = statistics
        metrics.model_ready.set_function(lambda: self.ready)
        metrics.model_version.set_function(lambda: self.version or 0)
        metrics.active_calls.set_function(lambda: len(self._under_way))
        self._calls = 0
        self._under_way: set[asyncio.Task[object]] = set()
        self._given_up: set[asyncio.Task[object]] = set()
        self._newest_call = 0
        self._heard_at = -WATCH_INTERVAL_S
        self._is_doubted = asyncio.Event()
        self.version: int | None = None
        """The version of the latest response; None before the first response."""
        self.ready = False
        """True if the model responded to the last probe, or to a call since then."""
        self.failure: Exception | None = None
        """The last probe's error; None after any response. While it is set, the circuit is open."""

    def check_circuit(self) -> None:
        """Raise a TritonUnavailableError while the circuit is open."""
        if self.failure is not None:
            raise TritonUnavailableError("the model did not respond to the last call")

    async def watch(self) -> None:
        """Keep `ready` and the cache's version up to date until cancelled."""
        await run_periodically("deployed model's readiness", self._probe_when_due, longest_pause_s=WATCH_INTERVAL_S)

    async def _probe_when_due(self) -> None:
        await self._until_due()
        asked_at = asyncio.get_running_loop().time()
        try:
            await self.classify([PROBE], PROBE_TIMEOUT_S)
        except Exception as error:
            # A response to another call meanwhile shows that the model is only busy, or has recovered.
            if self._heard_at < asked_at:
                self._break(error)

    async def _until_due(self) -> None:
        """Wait until a probe is due."""
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

    async def classify(self, texts: Sequence[str], timeout_s: float, is_bulk: bool = False) -> Classification:
        """Call Triton as in `Model.classify`, measure the call, and update the model's state from its outcome."""
        self._calls += 1
        call = self._calls
        is_lone = len(texts) == 1 and not self._under_way
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        outcome = "cancelled"
        started = time.perf_counter()
        try:
            with tracing.span("call model", kind="client", attributes={"sentiment.texts": len(texts)}) as tell:
                answer = await self._tritons.classify(texts, timeout_s, is_bulk)
                tell("sentiment.version", answer.version)
                for name, seconds in (answer.phases._asdict() if answer.phases else {}).items():
                    tell(f"sentiment.engine.{name}", seconds)
            outcome = "answered"
        except TextRefusedError as error:
            outcome = "refused"
            self._hear()
            if len(texts) == 1:
                log.warning("The model refused a text: %s", error)
            raise
        except TritonTimeoutError:
            outcome = "timeout"  # shows only that this request's timeout was too short
            raise
        except asyncio.CancelledError:
            if task not in self._given_up:
                raise
            raise TritonUnavailableError("the model has stopped responding") from None
        except Exception as error:
            outcome = "failed"
            self._is_doubted.set()
            # Only failures of the model count against its version: not that Triton is down, or full of requests.
            if isinstance(error, ModelFailedError) and self.version is not None:
                self._statistics.failed(self.version)
            raise
        finally:
            took_s = time.perf_counter() - started
            self._metrics.calls.labels(outcome).observe(took_s)
            self._under_way.discard(task)
            self._given_up.discard(task)
        self._metrics.call_texts.observe(len(texts))
        if answer.phases is not None:
            self._metrics.observe_phases(answer.phases)
        add_call(started, answer.phases)
        self._hear()
        stayed_lone = is_lone and call == self._calls
        self._statistics.answered(answer.version, 1_000 * took_s if stayed_lone else None)
        # Calls reach Triton in the order in which they start, but end in any order. The response to a call older than
        # the newest may name the old version, and must not bring it back.
        if call > self._newest_call:
            self._newest_call = call
            if answer.version != self.version:
                log.info("Version %d responds.", answer.version)
                self.version = answer.version
                self.cache.turn_to(answer.version)
        return answer

    def _hear(self) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self.ready = True
        self.failure = None

    def _break(self, reason: Exception) -> None:
        """Open the circuit, and cancel the calls that wait for the model."""
        # A model that has not responded yet may be starting; the pipeline's start tells if that takes long.
        if self.version is not None and type(reason) is not type(self.failure):
            log.warning("The model does not respond: %s", reason)
        self.ready = False
        self.failure = reason
        self._given_up |= self._under_way
        for task in self._under_way:
            task.cancel()
