"""What this process counts and measures of itself, for `GET /metrics`.

Names and units are those of Prometheus; of HTTP, those of OpenTelemetry's semantic conventions as Prometheus spells
them (`http.server.request.duration`), for which there are dashboards.
"""

from collections.abc import Iterable

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

from gateway.answer_cache import AnswerCache
from serving.protocol import MAX_BATCH_SIZE, Phases

_REQUEST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""OpenTelemetry's, and finer ones below for known texts, and larger ones above for long lists."""
_CALL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PHASE_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_TEXTS = tuple(2**power for power in range(MAX_BATCH_SIZE.bit_length()))


class Metrics:
    """The metrics of one gateway. Observed in its event loop, read by whoever collects."""

    def __init__(self) -> None:
        """All are 0."""
        # When each series began, as another series each: Prometheus sees a restart by the counters themselves.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry(auto_describe=True)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self.requests = Histogram(
            "http_server_request_duration_seconds",
            "Time from a request's head to the end of its answer.",
            ("http_request_method", "http_route", "http_response_status_code"),
            registry=self.registry,
            buckets=_REQUEST_S,
        )
        self.request_series: dict[tuple[str, str, int], Histogram] = {}
        """Of `requests`, each by its method, route and status."""
        self.active_requests = Gauge(
            "http_server_active_requests", "Requests that are being answered.", registry=self.registry
        )
        self.call_texts = Histogram(
            "sentiment_call_texts", "Texts in a call to the model.", registry=self.registry, buckets=_TEXTS
        )
        self.calls = Histogram(
            "sentiment_call_duration_seconds",
            "Time of a call to the model, by how it ended: answered, refused, timeout, failed or cancelled.",
            ("outcome",),
            registry=self.registry,
            buckets=_CALL_S,
        )
        self.active_calls = Gauge(
            "sentiment_active_calls", "Calls to the model that are under way.", registry=self.registry
        )
        phases = Histogram(
            "sentiment_engine_phase_seconds",
            "Time that a call spent in the engine: in its tokenizer, in its queue, and while its texts were run.",
            ("phase",),
            registry=self.registry,
            buckets=_PHASE_S,
        )
        self._tokenize, self._queue, self._graph = map(phases.labels, ("tokenize", "queue", "graph"))
        self.micro_batch_queue = Gauge(
            "sentiment_micro_batch_queue_length",
            "Live requests that wait to go into a call together.",
            registry=self.registry,
        )
        self.micro_batch_wait = Histogram(
            "sentiment_micro_batch_wait_seconds",
            "Time that a live request waited until its call began.",
            registry=self.registry,
            buckets=_PHASE_S,
        )
        self.answers = Counter(
            "sentiment_answers", "Texts that the model answered, by label.", ("label",), registry=self.registry
        )
        self.sampled = Counter(
            "sentiment_sampled_predictions",
            "Texts of the sample of what is asked: kept, or lost because the database was away.",
            ("outcome",),
            registry=self.registry,
        )
        self.challenger = Counter(
            "sentiment_challenger_texts",
            "Live texts for which the version that is tried was asked: answered, or failed and answered by the other.",
            ("outcome",),
            registry=self.registry,
        )
        self.compared = Counter(
            "sentiment_compared_texts",
            "Live texts of which the labels of both versions are the same or different, or dropped for want of time.",
            ("outcome",),
            registry=self.registry,
        )
        self.feedback = Counter(
            "sentiment_feedback_received_rows",
            "Rows of feedback that this gateway took, by label.",
            ("label",),
            registry=self.registry,
        )
        self.model_ready = Gauge(
            "sentiment_model_ready", "Whether the model answered when it was last asked.", registry=self.registry
        )
        self.model_version = Gauge(
            "sentiment_model_version", "The version that answers; 0 before the first answer.", registry=self.registry
        )
        self.cache: AnswerCache | None = None
        """What is watched; none before the gateway begins."""

    def of_requests(self, method: str, route: str, status: int) -> Histogram:
        """The series of such requests; to be kept, for it takes a while to be found."""
        key = (method, route, status)
        if key not in self.request_series:
            self.request_series[key] = self.requests.labels(method, route, status)
        return self.request_series[key]

    def observe_phases(self, phases: Phases) -> None:
        """Take what the engine told of a call."""
        self._tokenize.observe(phases.tokenize_s)
        self._queue.observe(phases.queue_s)
        self._graph.observe(phases.graph_s)

    def watch_cache(self, cache: AnswerCache) -> None:
        """Read what the cache counts of itself."""
        self.cache = cache
        self.registry.register(_CacheCollector(cache))


class _CacheCollector:
    def __init__(self, cache: AnswerCache) -> None:
        self._cache = cache

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily("sentiment_cache_hits", "Texts whose answer was known.", self._cache.hits)
        yield CounterMetricFamily("sentiment_cache_misses", "Texts whose answer was not known.", self._cache.misses)
        yield GaugeMetricFamily("sentiment_cache_texts", "Texts whose answers are kept.", self._cache.texts)
        yield GaugeMetricFamily("sentiment_cache_bytes", "Memory of the answers that are kept.", self._cache.bytes)
        yield GaugeMetricFamily("sentiment_cache_max_bytes", "Its bound.", self._cache.max_bytes)
