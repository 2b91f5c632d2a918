"""Request rates and latencies of the last minutes, calculated from the gateway's metrics every few seconds."""

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from prometheus_client.core import Metric

from common.periodic import run_periodically
from gateway.monitoring.metrics import Metrics

INTERVAL_S = 2.0
"""Seconds between two readings; a reading takes less than a millisecond."""
KEPT_S = 300.0
RECENT_S = 30.0
"""Window of the current figures in seconds, long enough that a few requests do not make them jump."""
TRY_PATH = "/console/try"
SCORE_PATH = "/console/score"
_PREDICTIONS = ("/predict/", TRY_PATH, SCORE_PATH)
"""Beginnings of the routes that return predictions: those of the API, and those of the console's page Try."""


@dataclass(frozen=True)
class Reading:
    """The counters at one moment. Request counters cover prediction routes only."""

    at: float
    """Seconds of the monotonic clock."""
    requests: float
    failed: float
    """Responses with a status of 500 or more, including requests refused because they could not finish in time."""
    by_duration: tuple[tuple[float, float], ...]
    """(bound in seconds, requests that took at most that long), ascending; the last bound is infinite."""
    texts: int
    """Texts of the requests."""
    hits: int
    misses: int
    """Texts whose prediction was not in the cache; `hits` counts those that were. The page Try does not use it."""
    queue: float
    """Live requests that wait for a micro-batch."""
    calls: float
    """Calls to the model that are running."""


@dataclass(frozen=True)
class Rates:
    """Rates and latencies between two readings."""

    requests: float
    requests_per_s: float
    texts_per_s: float
    failed_share: float | None
    """Share of the requests, 0 to 1. This field and those below are None without requests or texts."""
    p50_ms: float | None
    p99_ms: float | None
    """99th percentile of the response time; of fewer than 100 requests, a time within which all were answered."""
    hit_share: float | None
    """Share of the texts looked up in the cache whose prediction was there, 0 to 1."""


class Pulse:
    """Keeps the readings of the last `KEPT_S` seconds."""

    def __init__(self, metrics: Metrics) -> None:
        """Read `metrics`."""
        self._metrics = metrics
        self._readings: deque[Reading] = deque(maxlen=round(KEPT_S / INTERVAL_S) + 1)

    async def watch(self) -> None:
        """Take a reading every `INTERVAL_S` seconds, until cancelled."""

        async def look() -> None:
            self._readings.append(self.look())

        await run_periodically("recent rates", look, INTERVAL_S)

    def look(self) -> Reading:
        """Return the current counters."""
        requests = failed = 0.0
        by_duration: dict[float, float] = {}
        # Collecting the whole family would be slower: most of its series belong to other routes.
        for (_, route, status), series in self._metrics.request_series.copy().items():
            if not route.startswith(_PREDICTIONS):
                continue
            for sample in next(iter(series.collect())).samples:
                if sample.name.endswith("_count"):
                    requests += sample.value
                    failed += sample.value if status >= 500 else 0
                elif sample.name.endswith("_bucket"):
                    bound = float(sample.labels["le"])
                    by_duration[bound] = by_duration.get(bound, 0.0) + sample.value
        cache = self._metrics.cache
        hits, misses = (cache.hits, cache.misses) if cache else (0, 0)
        return Reading(
            time.monotonic(),
            requests,
            failed,
            tuple(sorted(by_duration.items())),
            hits + misses + self._metrics.tried_texts,
            hits,
            misses,
            _value(self._metrics.micro_batch_queue.collect()),
            _value(self._metrics.active_calls.collect()),
        )

    @property
    def latest(self) -> Reading:
        """The latest reading, or a new one if there is none."""
        return self._readings[-1] if self._readings else self.look()

    def recent(self) -> Rates | None:
        """Return the rates of the last `RECENT_S` seconds; None before the second reading."""
        return rates(self._last(RECENT_S))

    def history(self) -> list[tuple[float, Rates]]:
        """Return the time of each reading, in seconds since the epoch, with the rates since the reading before it.

        The oldest comes first. The latencies are those of the `RECENT_S` seconds before the reading, so that a few
        requests make a line.
        """
        samples = list(self._readings)
        ahead_s = time.time() - time.monotonic()
        found, begin = [], 0
        for before, sample in pairwise(samples):
            while samples[begin].at < sample.at - RECENT_S and samples[begin] is not before:
                begin += 1
            step, recent = rates([before, sample]), rates([samples[begin], sample])
            if step is not None and recent is not None:
                found.append((sample.at + ahead_s, replace(step, p50_ms=recent.p50_ms, p99_ms=recent.p99_ms)))
        return found

    def _last(self, seconds: float) -> list[Reading]:
        since = time.monotonic() - seconds
        return [sample for sample in self._readings if sample.at >= since]


def rates(samples: Sequence[Reading]) -> Rates | None:
    """Return the rates between the first and the last reading; None if there are fewer than two."""
    if len(samples) < 2 or samples[-1].at <= samples[0].at:
        return None
    first, last = samples[0], samples[-1]
    seconds = last.at - first.at
    requests = last.requests - first.requests
    texts = last.texts - first.texts
    looked_up = (last.hits + last.misses) - (first.hits + first.misses)
    before = dict(first.by_duration)
    by_duration = [(bound, count - before.get(bound, 0.0)) for bound, count in last.by_duration]
    return Rates(
        requests,
        requests / seconds,
        texts / seconds,
        (last.failed - first.failed) / requests if requests else None,
        _milliseconds(by_duration, 0.50),
        _milliseconds(by_duration, 0.99),
        (last.hits - first.hits) / looked_up if looked_up else None,
    )


def _milliseconds(by_duration: Sequence[tuple[float, float]], share: float) -> float | None:
    """Estimate a quantile of the durations from buckets, as Prometheus's `histogram_quantile` does.

    A quantile that is the longest duration is not estimated: it is the bound of its bucket, which may be far above.
    """
    total = by_duration[-1][1] if by_duration else 0.0
    if not total:
        return None
    lower, below = 0.0, 0.0
    for bound, count in by_duration:
        if count >= share * total:
            upper = bound if math.isfinite(bound) else lower
            if total * (1 - share) < 1 and count == total:
                return 1_000 * upper
            return 1_000 * (lower + (upper - lower) * (share * total - below) / (count - below))
        lower, below = bound, count
    return None


def _value(families: Iterable[Metric]) -> float:
    return next(sample.value for family in families for sample in family.samples)
