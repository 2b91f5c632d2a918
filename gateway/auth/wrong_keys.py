"""Slows down and reports guessing of API keys. A valid key is never refused because of others' wrong keys."""

import asyncio
import logging
import time

from limits import parse
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Scope

from common.errors import PipelineError
from gateway.http.callers import client_address
from gateway.http.problems import WrongKeysError
from gateway.http.rate_counts import RateCounts
from storage import events
from storage.events import EventKind
from storage.lazy_database import Storage

MOST_A_MINUTE = 10
"""Wrong keys per address and minute that get status 401; further ones get 429."""
_EVENT_EVERY_S = 600.0
"""Minimum interval of the events, so that nobody fills the database by guessing."""

log = logging.getLogger(__name__)


class WrongKeys:
    """Counts wrong keys by address. Create one per gateway."""

    def __init__(self, storage: Storage) -> None:
        """Record guessing in the events of `storage`."""
        self._storage = storage
        self._counts = RateCounts(parse(f"{MOST_A_MINUTE}/minute"), FixedWindowRateLimiter)
        self._recorded_at: float | None = None

    def count(self, scope: Scope) -> None:
        """Count a wrong key of a request.

        Raises:
            WrongKeysError: the request's address has sent too many wrong keys within a minute.
        """
        address = client_address(scope)
        retry_after_s = self._counts.hit(address)
        if retry_after_s is None:
            return
        now = time.monotonic()
        if self._recorded_at is None or now - self._recorded_at > _EVENT_EVERY_S:
            self._recorded_at = now
            self._tell(address)
        detail = "Too many wrong API keys came from this address. A valid key is accepted at any time."
        raise WrongKeysError(detail, retry_after_s=retry_after_s)

    def _tell(self, address: str) -> None:
        message = f"More than {MOST_A_MINUTE} wrong API keys came from {address or 'a local socket'} within a minute."
        log.warning("%s Further ones get status 429 for now.", message)
        self._telling = asyncio.create_task(asyncio.to_thread(self._record, message))

    def _record(self, message: str) -> None:
        try:
            with self._storage.open().transaction() as session:
                events.record(session, EventKind.KEYS_GUESSED, message)
        except (PipelineError, SQLAlchemyError) as error:
            log.warning("The event cannot be stored: %s", str(error).partition("\n")[0])
