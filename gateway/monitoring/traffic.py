"""Writes how many predictions this gateway has answered to the database, for the weekly digest."""

import asyncio

from common.periodic import run_periodically, try_once
from gateway.monitoring.recent_rates import Pulse
from storage.lazy_database import Storage
from storage.traffic import Counts, add_traffic

INTERVAL_S = 60.0
_LAST_WRITE_S = 3.0
"""Time limit in seconds of the last write, when the gateway shuts down."""


class TrafficCount:
    """Adds what was answered since the last write to the counts of the hour."""

    def __init__(self, storage: Storage, pulse: Pulse) -> None:
        """Read the counters of `pulse`, and write to `storage`, whose database may be down: the next write makes up."""
        self._storage = storage
        self._pulse = pulse
        self._written = Counts()

    async def keep_writing(self) -> None:
        """Write until cancelled."""
        await run_periodically("traffic counts", self.write, INTERVAL_S, delay_s=INTERVAL_S)

    async def end(self) -> None:
        """Write the last counts, unless the database is too slow."""
        await try_once(self.write, _LAST_WRITE_S, "The last counts of predictions are lost")

    async def write(self) -> None:
        """Write what is new."""
        found = self._pulse.look()
        total = Counts(int(found.requests), int(found.failed), found.texts)
        new = Counts(*(after - before for after, before in zip(total, self._written, strict=True)))
        if any(new):
            await asyncio.to_thread(lambda: add_traffic(self._storage.open(), new))
            self._written = total
