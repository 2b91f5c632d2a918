"""Keeps a gateway up to date on the version on trial, and writes the gateway's findings to the database."""

import asyncio
import logging
from collections.abc import Callable

from common.periodic import run_periodically, try_once
from gateway.canary.challenger import Challenger
from gateway.canary.shadow_compare import Findings
from gateway.inference.predictor import Predictor
from storage import releases
from storage.lazy_database import Storage
from storage.tables import Release

INTERVAL_S = 1.0
"""Interval of the database reads."""
LONGEST_BLIND_S = 10.0
"""Maximum time without a database read before the trial pauses: nobody could see that the version does badly."""
_FIRST_LOOK_S = 5.0

log = logging.getLogger(__name__)


class ReleaseWatch:
    """Sets the predictor's challenger while a release runs, and removes it afterwards. Use it within one event loop."""

    def __init__(
        self, storage: Storage, predictor: Predictor, make: Callable[[Release], Challenger], keeps_texts: bool
    ) -> None:
        """Create challengers with `make`, for the running release in `storage`, and set them on `predictor`."""
        self._storage = storage
        self._predictor = predictor
        self._challenger: Challenger | None = None
        self._make = make
        self._keeps_texts = keeps_texts
        self._seen_at = float("-inf")
        self._retiring: list[asyncio.Task[None]] = []

    async def first_look(self) -> None:
        """Read the running release before the first request, so that each text keeps its version across a restart."""
        failed = "The running release cannot be read yet; the deployed version answers all texts"
        await try_once(self._look, _FIRST_LOOK_S, failed)

    async def watch(self) -> None:
        """Read the running release and write findings, repeatedly until cancelled."""
        # Without growing pauses, the challenger is given up in time, and is back soon after the database.
        await run_periodically(
            "release on this gateway", self._look, INTERVAL_S, delay_s=INTERVAL_S, longest_pause_s=INTERVAL_S
        )

    async def end(self) -> None:
        """Close all connections at once."""
        challenger, self._challenger, self._predictor.challenger = self._challenger, None, None
        if challenger is not None:
            await challenger.close()
        for task in self._retiring:
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        challenger = self._challenger
        found = Findings() if challenger is None else challenger.findings.take()
        release_id = None if challenger is None else challenger.release_id
        looking = asyncio.create_task(asyncio.to_thread(self._tell_and_read, release_id, found))
        # The read may take long if the database hangs.
        await asyncio.wait({looking}, timeout=max(self._seen_at + LONGEST_BLIND_S - loop.time(), 0))
        if not looking.done():
            self._give_up("it does not respond")
        try:
            release = await looking
        except Exception as error:
            if challenger is not None:
                challenger.findings.put_back(found)
            if loop.time() - self._seen_at > LONGEST_BLIND_S:
                self._give_up(error)
            raise
        self._seen_at = loop.time()
        challenger = self._challenger
        if challenger is not None and release is not None and release.id == challenger.release_id:
            challenger.share = releases.share_of(release)
        elif challenger is not None or release is not None:
            self._turn_to(release)

    def _give_up(self, reason: object) -> None:
        challenger = self._challenger
        if challenger is not None:
            log.warning(
                "The trial of version %d pauses while the database is unavailable: %s", challenger.version, reason
            )
            self._turn_to(None)

    def _turn_to(self, release: Release | None) -> None:
        before = self._challenger
        self._challenger = self._predictor.challenger = None if release is None else self._make(release)
        if release is not None:
            log.info("Version %d is on trial (%s).", release.version, release.mode)
        self._retiring = [task for task in self._retiring if not task.done()]
        if before is not None:
            self._retiring.append(before.retire())

    def _tell_and_read(self, release_id: int | None, found: Findings) -> Release | None:
        database = self._storage.open()
        if release_id is not None and found.figures:
            # Whatever fails from the commit on, the findings must not be put back: they may be stored already.
            releases.add_findings(
                database, release_id, found.figures, found.differing, self._keeps_texts, before_commit=found.take
            )
        with database.reading() as session:
            return releases.running(session)
