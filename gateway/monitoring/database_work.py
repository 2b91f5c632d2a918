"""Runs database work in threads, so that it does not block the event loop, and with time limits."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from common.errors import PipelineError
from gateway.http.problems import StorageUnavailableError

AT_ONCE = 4
"""Maximum threads for this work. asyncio has six on two cores; the others stay free for operators' requests."""
LONGEST_QUEUE_S = 5.0
LONGEST_WORK_S = 15.0
"""Longer than the database waits for a lock, so that the error usually comes from the database."""

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class DatabaseWork:
    """A limited number of threads for the database work of requests; use it within one event loop."""

    def __init__(self) -> None:
        """Start without work."""
        self._free = asyncio.Semaphore(AT_ONCE)

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run `work` in a thread.

        Raises:
            StorageUnavailableError: the database cannot be used; or no thread was free, or the database did not
                respond, in time. A database that hangs may still do the work later, so a client must repeat its request
                with the same idempotency key.
        """
        try:
            await asyncio.wait_for(self._free.acquire(), LONGEST_QUEUE_S)
        except TimeoutError as error:
            raise StorageUnavailableError("The database is too slow, and nothing was stored; send it again.") from error
        doing = asyncio.ensure_future(asyncio.to_thread(work))
        doing.add_done_callback(self._end)
        try:
            return await asyncio.wait_for(asyncio.shield(doing), LONGEST_WORK_S)
        except TimeoutError as error:
            detail = "The database does not respond. Send it again; with the same Idempotency-Key it is stored once."
            raise StorageUnavailableError(detail) from error
        except (PipelineError, SQLAlchemyError) as error:
            log.warning("Database work failed: %s", str(error).partition("\n")[0])
            raise StorageUnavailableError("The database is not available now; the log has the reason.") from error

    def _end(self, done: "asyncio.Future[Any]") -> None:
        self._free.release()
        if not done.cancelled():
            done.exception()  # retrieved, so that asyncio does not warn if no request waits any more
