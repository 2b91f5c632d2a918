"""Reads gRPC request messages, few at a time and fairly by caller, so that unfinished calls do not block others."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

MOST_READ = 16
"""Maximum messages read at the same time, each of up to the maximum size. A small message takes no time."""
READ_S = 5.0
"""Seconds within which a message must arrive."""
PATIENCE_S = 0.25
"""Seconds that a message may take to arrive while other calls wait for a place."""
MOST_OF_CALLER = 128
"""Maximum calls of one caller whose message has not arrived. A new call then ends the oldest."""


class RefusedCallError(Exception):
    """A call is refused; the message says why."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        """Refuse with a gRPC status and a sentence for the caller."""
        super().__init__(reason)
        self.code = code


@dataclass(eq=False)
class _Call:
    """A call whose message has not arrived."""

    turn: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Done when the call's message may be read."""
    gives_way: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """Done when the call must end to make room for others."""
    began: float = 0.0


class Reading:
    """The calls whose messages have not arrived. Create one per server, within its event loop."""

    def __init__(self) -> None:
        """Start without calls."""
        self._waiting: dict[str, dict[_Call, None]] = {}  # by caller, oldest first
        self._being_read: dict[str, dict[_Call, None]] = {}
        self._count = 0
        self._look: asyncio.TimerHandle | None = None

    async def read(self, caller: str, read: Callable[[], Awaitable[object]]) -> object:
        """Wait for the caller's turn, then return the message from `read`.

        Raises:
            RefusedCallError: the message did not arrive in time.
        """
        call = _Call()
        self._give_way_to_new(caller)
        self._waiting.setdefault(caller, {})[call] = None
        self._next()
        reading = asyncio.ensure_future(self._in_turn(call, read))
        ends: list[asyncio.Future[Any]] = [reading, call.gives_way]
        try:
            await asyncio.wait(ends, timeout=READ_S, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            if call.gives_way.done():
                raise RefusedCallError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    "The message arrived too slowly while other calls waited; try again.",
                )
            raise RefusedCallError(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"The message did not arrive within {READ_S:.0f} s."
            )
        finally:
            reading.cancel()
            self._leave(caller, call)

    async def _in_turn(self, call: _Call, read: Callable[[], Awaitable[object]]) -> object:
        await call.turn
        return await read()

    def _give_way_to_new(self, caller: str) -> None:
        being_read, waiting = self._being_read.get(caller, {}), self._waiting.get(caller, {})
        if len(being_read) + len(waiting) >= MOST_OF_CALLER:
            self._end(caller, next(iter(being_read or waiting)))

    def _next(self) -> None:
        """Start to read waiting messages; callers with the fewest messages being read go first."""
        now = asyncio.get_running_loop().time()
        while self._waiting and self._count < MOST_READ:
            caller = min(self._waiting, key=lambda name: len(self._being_read.get(name, ())))
            call = next(iter(self._waiting[caller]))
            _take(self._waiting, caller, call)
            self._being_read.setdefault(caller, {})[call] = None
            self._count += 1
            call.began = now
            if not call.turn.done():
                call.turn.set_result(None)
        if self._waiting and self._look is None:
            self._look = asyncio.get_running_loop().call_later(PATIENCE_S, self._make_room)

    def _make_room(self) -> None:
        """End one slow call for each waiting call, first of the callers with the most messages being read."""
        self._look = None
        latest = asyncio.get_running_loop().time() - PATIENCE_S / 2
        for _ in range(sum(map(len, self._waiting.values()))):
            slow = [name for name, calls in self._being_read.items() if next(iter(calls)).began < latest]
            if not slow:
                break
            caller = max(slow, key=lambda name: len(self._being_read[name]))
            self._end(caller, next(iter(self._being_read[caller])))
        self._next()

    def _end(self, caller: str, call: _Call) -> None:
        if not call.gives_way.done():
            call.gives_way.set_result(None)
        self._leave(caller, call)

    def _leave(self, caller: str, call: _Call) -> None:
        if _take(self._being_read, caller, call):
            self._count -= 1
            self._next()
        else:
            _take(self._waiting, caller, call)


def _take(calls: dict[str, dict[_Call, None]], caller: str, call: _Call) -> bool:
    """Remove a caller's call from `calls`; return whether it was there."""
    of_caller = calls.get(caller, {})
    if call not in of_caller:
        return False
    del of_caller[call]
    if not of_caller:
        del calls[caller]
    return True
