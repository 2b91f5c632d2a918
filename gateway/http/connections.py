"""Limits open connections, and waiting ones of clients without a key, so that nobody can take all connections."""

import contextlib
import resource
from typing import Protocol

MOST_REQUESTS = 4_096
"""Maximum concurrent requests of all kinds, including those whose body is still being sent. It limits their memory and
file descriptors."""
MOST_STRANGERS = 512
"""Maximum waiting connections if a key is required. Each holds at most a head of 64 KiB and two reads."""
_SHARE_OF_OPEN = 5 / 8
"""Maximum share of the process's file descriptors for connections. The gRPC port may use a quarter; the rest is for
files, the database and Triton."""
_MOST_DESCRIPTORS = 65_536
"""More than all connections need, and few enough for programs that close each descriptor at their start."""
_SHARE_OF_ADDRESS = 4
"""Divisor of the maximum: an address with more connections than this part loses its own oldest one first."""


class Waiting(Protocol):
    """Interface of a connection for this module."""

    group: str
    """The client's address group, from `gateway.http.callers`."""

    def give_way(self) -> None:
        """Close the connection, because another one needs its place."""


def raise_descriptor_limit() -> None:
    """Raise this process's limit on open file descriptors as far as the system allows; many set only 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


class StrangersConnections:
    """Connections without a key that wait for their client to send a request, to complete it, or to read the response.

    A client sends a small request at once, so its connection waits for microseconds. Connections that are held open on
    purpose are therefore among the oldest, and the oldest are closed first.

    Idle connections of clients with a key only give way if the process runs out of file descriptors while few
    connections wait. Those few may be new ones of honest clients whose first request is on its way.
    """

    def __init__(self, keys_are_needed: bool) -> None:
        """Start with no connections."""
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = min(MOST_STRANGERS if keys_are_needed else MOST_REQUESTS // 2, descriptors // 2)
        self._most_open = int(_SHARE_OF_OPEN * descriptors)
        self._open = 0
        self._idle: dict[Waiting, None] = {}  # with a key, the oldest first
        self._waiting: dict[Waiting, None] = {}  # the oldest first
        self._by_group: dict[str, dict[Waiting, None]] = {}

    def __len__(self) -> int:
        """Return the number of waiting connections."""
        return len(self._waiting)

    def open(self) -> bool:
        """Count a new connection. If there are too many, close a waiting or idle one; return False if there is none."""
        self._open += 1
        if self._open <= self._most_open:
            return True
        crowded = len(self._waiting) > self._most // _SHARE_OF_ADDRESS
        order = (self._waiting, self._idle) if crowded else (self._idle, self._waiting)
        oldest = next((connection for connections in order for connection in connections), None)
        if oldest is None:
            return False
        self.discard(oldest)
        oldest.give_way()
        return True

    def close(self, connection: Waiting) -> None:
        """Remove a connection that has ended."""
        self._open -= 1
        self.discard(connection)

    def add_idle(self, connection: Waiting) -> None:
        """Add a connection of a client with a key that has no request."""
        self.discard(connection)
        self._idle[connection] = None

    def add(self, connection: Waiting) -> None:
        """Add a connection that begins to wait. If there are too many, close the oldest."""
        if connection in self._waiting:
            return
        self._waiting[connection] = None
        of_group = self._by_group.setdefault(connection.group, {})
        of_group[connection] = None
        if len(self._waiting) > self._most:
            crowded = of_group if len(of_group) > self._most // _SHARE_OF_ADDRESS else self._waiting
            oldest = next(iter(crowded))
            self.discard(oldest)
            oldest.give_way()

    def discard(self, connection: Waiting) -> None:
        """Remove a connection that no longer waits."""
        self._idle.pop(connection, None)
        if connection not in self._waiting:
            return
        del self._waiting[connection]
        of_group = self._by_group[connection.group]
        del of_group[connection]
        if not of_group:
            del self._by_group[connection.group]
