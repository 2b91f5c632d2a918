"""What `GET /metrics` answers: this process, the loop as the database knows it, and the bundled Triton."""

import asyncio
import logging
from collections.abc import Sequence

import httpx
from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy.exc import SQLAlchemyError

from errors import PipelineError
from gateway.loop_metrics import loop_metrics
from gateway.metrics import Metrics
from settings import Settings
from storage.storage import Storage

DATABASE_WAIT_S = 3.0
TRITON_WAIT_S = 1.0
"""Prometheus gives up on an answer after ten seconds, by default."""

log = logging.getLogger(__name__)


class Scrape:
    """Puts the answer together; what cannot be had in time is left out, and a metric says so."""

    def __init__(self, settings: Settings, storage: Storage, metrics: Metrics) -> None:
        """Answer with `metrics`, and with what `storage` holds now."""
        self._settings = settings
        self._storage = storage
        self._metrics = metrics
        self._look: asyncio.Task[list[Metric]] | None = None
        self._triton: httpx.AsyncClient | None = None

    async def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        loop, triton = await asyncio.gather(self._loop(), self._of_triton())
        return generate_latest(self._metrics.registry) + generate_latest(_Families(loop)) + triton

    async def close(self) -> None:
        """Close the connection to Triton."""
        if self._triton is not None:
            await self._triton.aclose()

    async def _loop(self) -> list[Metric]:
        # One look at a time, so that a database that hangs does not take thread after thread.
        if self._look is None or self._look.done():
            self._look = asyncio.ensure_future(asyncio.to_thread(self._read))
        try:
            families = await asyncio.wait_for(asyncio.shield(self._look), DATABASE_WAIT_S)
        except (asyncio.TimeoutError, PipelineError, SQLAlchemyError) as error:
            log.debug("The loop's metrics cannot be had: %s", str(error).partition("\n")[0])
            families = []
        return [*families, _up("sentiment_database_up", "Whether the database answered.", bool(families))]

    def _read(self) -> list[Metric]:
        return loop_metrics(self._settings, self._storage.open())

    async def _of_triton(self) -> bytes:
        """What the bundled Triton tells on loopback, where nobody else can ask it."""
        if self._settings.triton_url is not None:
            return b""
        if self._triton is None:
            self._triton = httpx.AsyncClient(trust_env=False, verify=False, timeout=TRITON_WAIT_S)
        try:
            response = await self._triton.get(f"http://127.0.0.1:{self._settings.triton_metrics_port}/metrics")
            text = response.content if response.is_success else b""
        except httpx.HTTPError:
            text = b""
        up = _up("sentiment_triton_metrics_up", "Whether the bundled Triton told its metrics.", bool(text))
        return generate_latest(_Families([up])) + text


class _Families:
    """Metrics that were collected already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Sequence[Metric]:
        return self._families


def _up(name: str, text: str, is_up: bool) -> Metric:
    return GaugeMetricFamily(name, text, is_up)
