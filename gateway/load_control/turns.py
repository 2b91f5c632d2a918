"""Fair turns between callers: a caller that sends many requests delays only itself."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """A queue that takes callers in turn, and keeps the order of each caller's items."""

    def __init__(self) -> None:
        """Start empty."""
        self._by_caller: dict[str, deque[Item]] = {}
        """Waiting items by caller; the first caller has the next turn."""
        self._length = 0

    def __len__(self) -> int:
        """Return the number of waiting items."""
        return self._length

    def put(self, caller: str, item: Item) -> None:
        """Add an item behind the caller's other items."""
        self._by_caller.setdefault(caller, deque()).append(item)
        self._length += 1

    def first(self) -> Item:
        """Return the next item without removing it; the queue must not be empty."""
        return next(iter(self._by_caller.values()))[0]

    def take(self) -> Item:
        """Remove and return the next item; the queue must not be empty."""
        caller, items = next(iter(self._by_caller.items()))
        del self._by_caller[caller]
        item = items.popleft()
        if items:
            self._by_caller[caller] = items
        self._length -= 1
        return item


class Turns:
    """A semaphore whose places go to the callers in turn. Create and use it within one event loop."""

    def __init__(self, places: int) -> None:
        """Start with `places` free places. A turn must not need more, because so many never become free."""
        self._free = places
        self._waiting: FairQueue[tuple[int, asyncio.Future[None]]] = FairQueue()

    @asynccontextmanager
    async def turn(self, caller: str, places: int = 1, within_s: float | None = None) -> AsyncIterator[None]:
        """Wait for `places`, at most `within_s` seconds, and hold them during the block.

        Raises:
            asyncio.TimeoutError: the turn did not come in time.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.put(caller, (places, turn))
        self._go_on()
        try:
            if not turn.done():
                await asyncio.wait([turn], timeout=within_s)
            if not turn.done():
                raise TimeoutError
        except BaseException:
            self._withdraw(places, turn)
            raise
        try:
            yield
        finally:
            self._give(places)

    def _go_on(self) -> None:
        """Grant free places to waiting turns; a turn for few places never overtakes one for many."""
        while self._waiting:
            places, turn = self._waiting.first()
            if not turn.done():
                if places > self._free:
                    return
                self._free -= places
                turn.set_result(None)
            self._waiting.take()

    def _give(self, places: int) -> None:
        self._free += places
        self._go_on()

    def _withdraw(self, places: int, turn: "asyncio.Future[None]") -> None:
        """Withdraw a turn whose caller has left or waited too long."""
        if turn.cancel():
            self._go_on()
        else:
            self._give(places)
