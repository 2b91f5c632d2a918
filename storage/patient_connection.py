"""PostgreSQL connections that give up on a server that hangs.

A server that is stopped, swaps, or is behind a broken network keeps the TCP connection open and never responds. libpq
limits only the time to connect, so without a limit of our own every thread that uses the database would hang too.
"""

import time
from collections.abc import Callable, Generator
from typing import Any

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Engine, event

_LEAST_CONNECT_S, _LONGEST_CONNECT_S = 2, 10
"""Limits of the time to connect, in seconds; libpq has no shorter time than 2 s."""


def limit_silence(engine: Engine, longest_s: Callable[[], float]) -> None:
    """Make all future connections of a PostgreSQL engine accept at most `longest_s()` seconds of silence."""

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: list[Any], named: dict[str, Any]) -> PatientConnection:
        limit = max(_LEAST_CONNECT_S, int(min(longest_s(), _LONGEST_CONNECT_S)))
        connection = PatientConnection.connect(*arguments, **{**named, "connect_timeout": limit})
        connection.longest_silence_s = longest_s
        return connection


class PatientConnection(psycopg.Connection[Any]):
    """A connection that is closed, with an error, if the server stays silent for longer than `longest_silence_s()`."""

    longest_silence_s: Callable[[], float] = staticmethod(lambda: float("inf"))

    def wait(self, gen: PQGen[Any], *arguments: Any, **named: Any) -> Any:
        """Complete a generator of psycopg, which yields whenever it has to wait for the server.

        Raises:
            OperationalError: the server stayed silent for too long. It may still do what it was asked to do.
        """
        return super().wait(self._until_silent(gen), *arguments, **named)

    def _until_silent(self, gen: PQGen[Any]) -> Generator[Any, Any, Any]:
        heard_at = time.monotonic()
        try:
            wanted = next(gen)
            while True:
                # psycopg sends nothing (Ready.NONE, which is 0) every tenth of a second while the server is silent.
                ready = yield wanted
                now = time.monotonic()
                if ready:
                    heard_at = now
                elif now - heard_at > self.longest_silence_s():
                    self.close()
                    raise psycopg.OperationalError(f"the server has not responded for {now - heard_at:.0f} s")
                wanted = gen.send(ready)
        except StopIteration as end:
            return end.value
