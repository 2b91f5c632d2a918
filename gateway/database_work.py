"""Does what waits for the database where it holds up no request, and not for ever."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from gateway.problems import StorageUnavailableError

AT_ONCE = 4
"""Of the threads that asyncio has (six on two cores), so that some are left for what an operator asks."""
LONGEST_QUEUE_S = 5.0
LONGEST_WORK_S = 15.0
"""More than the database waits for a lock, so that the error is mostly its own."""

Result = TypeVar("Result")


class DatabaseWork:
    """A few threads for the work of many requests; use it within one event loop."""

    def __init__(self) -> None:
        """Nothing is under way."""
        self._free = asyncio.Semaphore(AT_ONCE)

    async def run(self, work: Callable[[], Result]) -> Result:
        """Do `work` in a thread.

        Raises:
            StorageUnavailableError: its turn did not come, or the database did not answer, in time. What a database
                that hangs was told it may do later, so a client sends its request again under the same key.
        """
        try:
            await asyncio.wait_for(self._free.acquire(), LONGEST_QUEUE_S)
        except asyncio.TimeoutError as error:
            raise StorageUnavailableError("The database is slow, and nothing was kept; send it again.") from error
        doing = asyncio.ensure_future(asyncio.to_thread(work))
        doing.add_done_callback(self._end)
        try:
            return await asyncio.wait_for(asyncio.shield(doing), LONGEST_WORK_S)
        except asyncio.TimeoutError as error:
            detail = "The database does not answer. Send it again; with the same Idempotency-Key it is kept once."
            raise StorageUnavailableError(detail) from error

    def _end(self, done: "asyncio.Future[Any]") -> None:
        self._free.release()
        if not done.cancelled():
            done.exception()  # seen, also where nobody waits any more
