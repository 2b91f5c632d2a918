"""Knows what to label next: found out in a process of its own, once for all who ask, and kept for some minutes."""

import asyncio
import logging
import threading
import time

from sqlalchemy.exc import SQLAlchemyError

from errors import PipelineError
from gateway.problems import StorageUnavailableError
from lifecycle.suggesting import MOST_SUGGESTIONS, suggest_apart
from settings import Settings
from storage.feedback import text_hash, told_among
from storage.storage import Storage
from storage.tables import Figures

FRESH_S = 300.0
LONGEST_WAIT_S = 25.0
"""For it to be found out. That goes on, and whoever asks again gets it."""
RETRY_AFTER_S = 5.0

log = logging.getLogger(__name__)


class Suggester:
    """Asks for suggestions when somebody wants them; use it within one event loop."""

    def __init__(self, settings: Settings, storage: Storage) -> None:
        """Nothing is known yet."""
        self._settings = settings
        self._storage = storage
        self._finding: asyncio.Task[Figures] | None = None
        self._found: Figures | None = None
        self._found_at = 0.0
        self._ended = threading.Event()

    async def suggest(self, limit: int) -> Figures:
        """Up to `limit` texts without a label, the most telling first, as `lifecycle/suggestions.py` tells them.

        Raises:
            StorageUnavailableError: they cannot be found out now, or not in time.
        """
        if self._found is None or time.monotonic() - self._found_at > FRESH_S:
            self._found = await self._find()
        left = await self._without_label(self._found)
        # Many were found, and are labelled now: there may be more.
        if len(left["suggestions"]) < limit and len(self._found["suggestions"]) == MOST_SUGGESTIONS:
            self._found = await self._find()
            left = await self._without_label(self._found)
        return {**left, "suggestions": left["suggestions"][:limit]}

    def end(self) -> None:
        """Find out nothing more, also what is being found out: the service's end must not wait for it."""
        self._ended.set()

    async def _find(self) -> Figures:
        if self._finding is None:
            self._finding = asyncio.create_task(asyncio.to_thread(suggest_apart, self._settings, self._ended))
            self._finding.add_done_callback(self._keep)
        try:
            return await asyncio.wait_for(asyncio.shield(self._finding), LONGEST_WAIT_S)
        except asyncio.TimeoutError as error:
            detail = "What to label next is still being found out; ask again."
            raise StorageUnavailableError(detail, retry_after_s=RETRY_AFTER_S) from error
        except PipelineError as error:
            raise StorageUnavailableError(str(error)) from error

    def _keep(self, done: "asyncio.Task[Figures]") -> None:
        self._finding = None
        if not done.cancelled() and done.exception() is None:
            self._found, self._found_at = done.result(), time.monotonic()

    async def _without_label(self, found: Figures) -> Figures:
        by_hash = {text_hash(item["text"]): item for item in found["suggestions"]}
        try:
            told = await asyncio.to_thread(lambda: told_among(self._storage.open(), by_hash))
        except (PipelineError, SQLAlchemyError) as error:
            log.error("What has labels already cannot be read: %s", str(error).partition("\n")[0])
            raise StorageUnavailableError("What to label next cannot be read: the database does not answer.") from error
        return {
            "considered": found["considered"] - len(told),
            "suggestions": [item for hash_, item in by_hash.items() if hash_ not in told],
        }
