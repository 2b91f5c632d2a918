"""The metrics of this process, for `GET /metrics`.

Names and units follow Prometheus. HTTP metrics follow OpenTelemetry's semantic conventions
(`http.server.request.duration`) in Prometheus's spelling, because dashboards for them exist.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from common import periodic
from serving.model_repo.protocol import MAX_BATCH_SIZE, Phases

_REQUEST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""OpenTelemetry's buckets, with smaller ones added for cached texts and larger ones for long lists."""
_CALL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PHASE_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_TEXTS = tuple(2**power for power in range(MAX_BATCH_SIZE.bit_length()))


class CacheCounts(Protocol):
    """Counters of the prediction cache."""

    hits: int
    misses: int
    bytes: int
    max_bytes: int

    @property
    def texts(self) -> int:
        """Number of texts whose predictions are cached."""


class Metrics:
    """The metrics of one gateway, updated in its event loop and read at each scrape."""

    def __init__(self) -> None:
        """Create all metrics with the value 0."""
        # A `_created` series for each series is not needed: Prometheus detects restarts from the counters themselves.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=True)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.registry.register(periodic.failures)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.requests = histogram(
            "http_server_request_duration_seconds",
            "Time from a request's head to the end of its response.",
            ("http_request_method", "http_route", "http_response_status_code"),
            buckets=_REQUEST_S,
        )
        self.request_series: dict[tuple[str, str, int], Histogram] = {}
        """The series of `requests`, by method, route and status."""
        self.active_requests = gauge("http_server_active_requests", "Requests in progress.")
        self.call_texts = histogram("sentiment_call_texts", "Texts in a call to the model.", buckets=_TEXTS)
        self.calls = histogram(
            "sentiment_call_duration_seconds",
            "Duration of calls to the model, by outcome: answered, refused, timeout, failed or cancelled.",
            ("outcome",),
            buckets=_CALL_S,
        )
        self.active_calls = gauge("sentiment_active_calls", "Calls to the model in progress.")
        phases = histogram(
            "sentiment_engine_phase_seconds",
            "Duration of a call's phases in the engine: tokenize, queue, graph.",
            ("phase",),
            buckets=_PHASE_S,
        )
        self._tokenize, self._queue, self._graph = map(phases.labels, ("tokenize", "queue", "graph"))
        self.grpc_calls = counter("sentiment_grpc_calls", "Predictions on the gRPC port, by status code.", ("code",))
        self.grpc_texts = counter("sentiment_grpc_texts", "Texts of the predictions on the gRPC port.")
        self.micro_batch_queue = gauge("sentiment_micro_batch_queue_length", "Live requests that wait for a call.")
        self.micro_batch_wait = histogram(
            "sentiment_micro_batch_wait_seconds", "Time that live requests waited for their call.", buckets=_PHASE_S
        )
        self.answers = counter("sentiment_answers", "Texts classified by the model, by label.", ("label",))
        self.sampled = counter(
            "sentiment_sampled_predictions",
            "Sampled texts by outcome: kept, or lost because the database was unavailable.",
            ("outcome",),
        )
        self.challenger = counter(
            "sentiment_challenger_texts",
            "Live texts sent to the version on trial: answered, or failed and answered by the deployed version.",
            ("outcome",),
        )
        self.compared = counter(
            "sentiment_compared_texts",
            "Live texts compared: with the same or different labels, or dropped for lack of time.",
            ("outcome",),
        )
        self.feedback = counter(
            "sentiment_feedback_received_rows", "Rows of feedback accepted by this gateway, by label.", ("label",)
        )
        self.model_ready = gauge("sentiment_model_ready", "1 if the model responded to the last call.")
        self.model_version = gauge("sentiment_model_version", "Version of the last response; 0 before the first.")
        self.open_tritons = gauge(
            "sentiment_open_tritons",
            "External Tritons that let anyone who reaches them load models, and thus run code.",
        )
        self.tried_texts = 0
        """Texts that the console's page Try classified, without the variants that explain a prediction."""
        self.cache: CacheCounts | None = None
        """The prediction cache; None before the gateway starts."""

    def of_requests(self, method: str, route: str, status: int) -> Histogram:
        """Return the series for a method, route and status. It is kept, because the library's lookup is slow."""
        key = (method, route, status)
        if key not in self.request_series:
            self.request_series[key] = self.requests.labels(method, route, status)
        return self.request_series[key]

    def observe_phases(self, phases: Phases) -> None:
        """Record the engine's times of one call."""
        self._tokenize.observe(phases.tokenize_s)
        self._queue.observe(phases.queue_s)
        self._graph.observe(phases.graph_s)

    def watch_cache(self, cache: CacheCounts) -> None:
        """Export the counters of `cache`."""
        self.cache = cache
        self.registry.register(Families(partial(_cache_metrics, cache)))


class Families:
    """A collector of the metrics that a function returns at each scrape."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        """Collect what `collect` returns."""
        self.collect = collect


def _cache_metrics(cache: CacheCounts) -> Iterator[Metric]:
    yield CounterMetricFamily("sentiment_cache_hits", "Texts found in the cache.", cache.hits)
    yield CounterMetricFamily("sentiment_cache_misses", "Texts not found in the cache.", cache.misses)
    yield GaugeMetricFamily("sentiment_cache_texts", "Cached texts.", cache.texts)
    yield GaugeMetricFamily("sentiment_cache_bytes", "Memory used by the cache.", cache.bytes)
    yield GaugeMetricFamily("sentiment_cache_max_bytes", "Maximum memory of the cache.", cache.max_bytes)
