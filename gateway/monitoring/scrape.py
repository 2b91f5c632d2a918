"""The response of `GET /metrics`: metrics of this process, of the database, and of the bundled Triton."""

import asyncio
import logging

import httpx
from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy.exc import SQLAlchemyError

from common.errors import PipelineError
from common.settings import Settings
from gateway.monitoring.loop_metrics import loop_metrics
from gateway.monitoring.metrics import Families, Metrics
from serving.client import sockets
from serving.host import triton
from storage.lazy_database import Storage

DATABASE_WAIT_S = 3.0
TRITON_WAIT_S = 1.0
"""Prometheus's own timeout is ten seconds by default."""

log = logging.getLogger(__name__)


class Scrape:
    """Builds the response. It omits sources that do not respond in time, and reports them in a metric."""

    def __init__(self, settings: Settings, storage: Storage, metrics: Metrics) -> None:
        """Combine `metrics` with metrics from `storage` and Triton."""
        self._settings = settings
        self._storage = storage
        self._metrics = metrics
        self._look: asyncio.Task[list[Metric]] | None = None
        self._triton: httpx.AsyncClient | None = None

    async def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        loop, triton = await asyncio.gather(self._loop(), self._of_triton())
        return generate_latest(self._metrics.registry) + generate_latest(Families(lambda: loop)) + triton

    async def close(self) -> None:
        """Close the connection to Triton."""
        if self._triton is not None:
            await self._triton.aclose()

    async def _loop(self) -> list[Metric]:
        # One read at a time, so that a database that hangs blocks only one thread.
        if self._look is None or self._look.done():
            self._look = asyncio.ensure_future(asyncio.to_thread(self._read))
        try:
            families = await asyncio.wait_for(asyncio.shield(self._look), DATABASE_WAIT_S)
        except (TimeoutError, PipelineError, SQLAlchemyError) as error:
            log.debug("The metrics cannot be read from the database: %s", str(error).partition("\n")[0])
            families = []
        return [*families, _up("sentiment_database_up", "1 if the database responded.", bool(families))]

    def _read(self) -> list[Metric]:
        return loop_metrics(self._settings, self._storage.open())

    async def _of_triton(self) -> bytes:
        """Return the bundled Triton's metrics, which only this account can read, over its socket."""
        if self._settings.triton_url is not None:
            return b""
        if self._triton is None:
            socket = sockets.private_path(triton.metrics_socket(self._settings))
            transport = httpx.AsyncHTTPTransport(uds=socket)
            self._triton = httpx.AsyncClient(transport=transport, trust_env=False, timeout=TRITON_WAIT_S)
        try:
            response = await self._triton.get("http://triton/metrics")
            text = response.content if response.is_success else b""
        except httpx.HTTPError:
            text = b""
        up = _up("sentiment_triton_metrics_up", "1 if the bundled Triton's metrics are included.", bool(text))
        return generate_latest(Families(lambda: [up])) + text


def _up(name: str, text: str, is_up: bool) -> Metric:
    return GaugeMetricFamily(name, text, is_up)
