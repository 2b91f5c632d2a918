"""Keeps a gateway knowing which version is tried on live texts, and tells the database what it found of it."""

import asyncio
import logging
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from errors import PipelineError
from gateway.challenger import Challenger
from gateway.comparing import Findings
from gateway.predictor import Predictor
from storage import releases
from storage.storage import Storage
from storage.tables import Release

INTERVAL_S = 1.0
"""Between two looks."""
LONGEST_BLIND_S = 10.0
"""Without a look into the database, after which nothing is tried any more: nobody could tell that it does badly."""
_FIRST_LOOK_S = 5.0

log = logging.getLogger(__name__)


class ReleaseWatch:
    """Gives the predictor a challenger while something is tried, and takes it away; use it within one event loop."""

    def __init__(
        self, storage: Storage, predictor: Predictor, make: Callable[[Release], Challenger], keeps_texts: bool
    ) -> None:
        """`make` a challenger of what `storage` says is tried, for `predictor`."""
        self._storage = storage
        self._predictor = predictor
        self._make = make
        self._keeps_texts = keeps_texts
        self._seen_at = float("-inf")
        self._retiring: list[asyncio.Task[None]] = []

    async def first_look(self) -> None:
        """Learn what is tried before the first request is answered, so that a text keeps its version at a restart."""
        try:
            await asyncio.wait_for(self._look(), _FIRST_LOOK_S)
        except asyncio.TimeoutError:
            log.warning("What is tried on live texts could not be read within %.0f s.", _FIRST_LOOK_S)

    async def watch(self) -> None:
        """Look, and tell what was found, until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            await self._look()

    async def end(self) -> None:
        """Close all connections, at once."""
        challenger, self._predictor.challenger = self._predictor.challenger, None
        if challenger is not None:
            await challenger.close()
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        challenger = self._predictor.challenger
        found = Findings() if challenger is None else challenger.findings.take()
        release_id = None if challenger is None else challenger.release_id
        looking = asyncio.create_task(asyncio.to_thread(self._tell_and_read, release_id, found))
        # A database that hangs may hold it for long.
        await asyncio.wait({looking}, timeout=max(self._seen_at + LONGEST_BLIND_S - loop.time(), 0))
        if not looking.done():
            self._give_up("it does not answer")
        try:
            release = await looking
        except (PipelineError, SQLAlchemyError) as error:
            if challenger is not None:
                challenger.findings.put_back(found)
            if loop.time() - self._seen_at > LONGEST_BLIND_S:
                self._give_up(error)
            return
        self._seen_at = loop.time()
        challenger = self._predictor.challenger
        if challenger is not None and release is not None and release.id == challenger.release_id:
            challenger.share = releases.share_of(release)
        elif challenger is not None or release is not None:
            self._turn_to(release)

    def _give_up(self, reason: object) -> None:
        challenger = self._predictor.challenger
        if challenger is not None:
            log.warning("Version %d is not tried while the database is away: %s", challenger.version, reason)
            self._turn_to(None)

    def _turn_to(self, release: Release | None) -> None:
        before = self._predictor.challenger
        self._predictor.challenger = None if release is None else self._make(release)
        if release is not None:
            log.info("Version %d is tried (%s).", release.version, release.mode)
        self._retiring = [task for task in self._retiring if not task.done()]
        if before is not None:
            self._retiring.append(before.retire())

    def _tell_and_read(self, release_id: int | None, found: Findings) -> Release | None:
        database = self._storage.open()
        if release_id is not None and found.figures:
            releases.add_findings(database, release_id, found.figures, found.differing, self._keeps_texts)
        with database.reading() as session:
            return releases.running(session)
