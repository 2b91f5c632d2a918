"""Writes how many predictions this gateway has answered to the database, for the weekly digest."""

import asyncio

from prometheus_client import Counter

from common.periodic import run_periodically, try_once
from gateway.monitoring.metrics import Metrics
from gateway.monitoring.recent_rates import Pulse
from storage.lazy_database import Storage
from storage.traffic import Counts, add_traffic

INTERVAL_S = 60.0
_LAST_WRITE_S = 3.0
"""Time limit in seconds of the last write, when the gateway shuts down."""
_FAILED = {"UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
"""gRPC status codes that mean what HTTP's statuses from 500 on mean."""


class TrafficCount:
    """Adds what was answered since the last write to the counts of the hour."""

    def __init__(self, storage: Storage, pulse: Pulse, metrics: Metrics) -> None:
        """Read the counters of `pulse` for HTTP, and those of `metrics` for gRPC.

        The database of `storage` may be down: the next write then adds what this one could not.
        """
        self._storage = storage
        self._pulse = pulse
        self._metrics = metrics
        self._written = Counts()

    async def keep_writing(self) -> None:
        """Write until cancelled."""
        await run_periodically("traffic counts", self.write, INTERVAL_S, delay_s=INTERVAL_S)

    async def end(self) -> None:
        """Write the last counts, unless the database is too slow."""
        await try_once(self.write, _LAST_WRITE_S, "The last counts of predictions are lost")

    async def write(self) -> None:
        """Write what is new."""
        http = self._pulse.look()
        grpc = _by_code(self._metrics.grpc_calls)
        total = Counts(
            requests=int(http.requests + sum(grpc.values())),
            failed=int(http.failed + sum(count for code, count in grpc.items() if code in _FAILED)),
            texts=int(http.texts + sum(_by_code(self._metrics.grpc_texts).values())),
        )
        new = Counts(*(after - before for after, before in zip(total, self._written, strict=True)))
        if any(new):
            await asyncio.to_thread(lambda: add_traffic(self._storage.open(), new))
            self._written = total


def _by_code(counter: Counter) -> dict[str, float]:
    """Return the counts by the label `code`, or the only count for the empty string."""
    return {sample.labels.get("code", ""): sample.value for metric in counter.collect() for sample in metric.samples}
