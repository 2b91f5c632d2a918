"""The metrics of this process, for `GET /metrics`.

Names and units follow Prometheus. HTTP metrics follow OpenTelemetry's semantic conventions
(`http.server.request.duration`) in Prometheus's spelling, because dashboards for them exist.
"""

from collections.abc import Iterable
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
        self.requests = Histogram(
            "http_server_request_duration_seconds",
            "Time from a request's head to the end of its response.",
            ("http_request_method", "http_route", "http_response_status_code"),
            registry=self.registry,
            buckets=_REQUEST_S,
        )
        self.request_series: dict[tuple[str, str, int], Histogram] = {}
        """The series of `requests`, by method, route and status."""
        self.active_requests = Gauge("http_server_active_requests", "Requests in progress.", registry=self.registry)
        self.call_texts = Histogram(
            "sentiment_call_texts", "Texts in a call to the model.", registry=self.registry, buckets=_TEXTS
        )
        self.calls = Histogram(
            "sentiment_call_duration_seconds",
            "Duration of calls to the model, by outcome: answered, refused, timeout, failed or cancelled.",
            ("outcome",),
            registry=self.registry,
            buckets=_CALL_S,
        )
        self.active_calls = Gauge("sentiment_active_calls", "Calls to the model in progress.", registry=self.registry)
        phases = Histogram(
            "sentiment_engine_phase_seconds",
            "Duration of a call's phases in the engine: tokenize, queue, graph.",
            ("phase",),
            registry=self.registry,
            buckets=_PHASE_S,
        )
        self._tokenize, self._queue, self._graph = map(phases.labels, ("tokenize", "queue", "graph"))
        self.micro_batch_queue = Gauge(
            "sentiment_micro_batch_queue_length",
            "Live requests that wait for a call.",
            registry=self.registry,
        )
        self.micro_batch_wait = Histogram(
            "sentiment_micro_batch_wait_seconds",
            "Time that live requests waited for their call.",
            registry=self.registry,
            buckets=_PHASE_S,
        )
        self.answers = Counter(
            "sentiment_answers", "Texts classified by the model, by label.", ("label",), registry=self.registry
        )
        self.sampled = Counter(
            "sentiment_sampled_predictions",
            "Sampled texts by outcome: kept, or lost because the database was unavailable.",
            ("outcome",),
            registry=self.registry,
        )
        self.challenger = Counter(
            "sentiment_challenger_texts",
            "Live texts sent to the version on trial: answered, or failed and answered by the deployed version.",
            ("outcome",),
            registry=self.registry,
        )
        self.compared = Counter(
            "sentiment_compared_texts",
            "Live texts compared: with the same or different labels, or dropped for lack of time.",
            ("outcome",),
            registry=self.registry,
        )
        self.feedback = Counter(
            "sentiment_feedback_received_rows",
            "Rows of feedback accepted by this gateway, by label.",
            ("label",),
            registry=self.registry,
        )
        self.model_ready = Gauge(
            "sentiment_model_ready", "1 if the model responded to the last call.", registry=self.registry
        )
        self.model_version = Gauge(
            "sentiment_model_version", "Version of the last response; 0 before the first.", registry=self.registry
        )
        self.open_tritons = Gauge(
            "sentiment_open_tritons",
            "External Tritons that let anyone who reaches them load models, and thus run code.",
            registry=self.registry,
        )
        self.tried_texts = 0
        """Texts that the console's page Try classified, without the variants that explain a prediction."""
        self.cache: CacheCounts | None = None
        """The prediction cache; None before the gateway starts."""

    def of_requests(self, method: str, route: str, status: int) -> Histogram:
        """Return the series for a method, route and status. Callers should keep it, because the lookup is slow."""
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
        self.registry.register(_CacheCollector(cache))


class _CacheCollector:
    def __init__(self, cache: CacheCounts) -> None:
        self._cache = cache

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily("sentiment_cache_hits", "Texts found in the cache.", self._cache.hits)
        yield CounterMetricFamily("sentiment_cache_misses", "Texts not found in the cache.", self._cache.misses)
        yield GaugeMetricFamily("sentiment_cache_texts", "Cached texts.", self._cache.texts)
        yield GaugeMetricFamily("sentiment_cache_bytes", "Memory used by the cache.", self._cache.bytes)
        yield GaugeMetricFamily("sentiment_cache_max_bytes", "Maximum memory of the cache.", self._cache.max_bytes)
