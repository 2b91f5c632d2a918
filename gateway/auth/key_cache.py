"""In-memory cache of the API keys and the ended sessions, kept up to date with the database."""

import asyncio
from dataclasses import dataclass

from common.periodic import run_periodically, try_once
from storage.api_keys import ADMIN_NAME, Scope, hash_key, valid_keys
from storage.ended_sessions import ended_sessions
from storage.lazy_database import Storage
from storage.tables import ApiKey

REFRESH_S = 1.0
"""Seconds between database reads: a new or revoked key takes effect after at most this time plus a read."""
_FIRST_LOOK_S = 5.0

ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller whose key a request has."""

    name: str
    scopes: frozenset[Scope]


class KnownKeys:
    """The valid keys and their callers. While the database is down, the last known keys are accepted."""

    def __init__(self, storage: Storage, admin_key: str, everybody: frozenset[Scope]) -> None:
        """Accept the admin key and, after the first read, keys in `storage`; each also gets the scopes `everybody`."""
        self._storage = storage
        self._everybody = everybody
        self._admin = {hash_key(admin_key.encode()): Caller(ADMIN_NAME, ALL_SCOPES)}
        self._callers = self._admin
        self.complete = False
        """True once the database has been read."""
        self.ended_sessions: frozenset[str] = frozenset()
        """Console sessions that somebody ended, on any gateway."""

    def find(self, key: bytes) -> Caller | None:
        """Return the caller that owns a key, or None.

        The lookup time is constant as far as a caller can exploit it. It compares not the key but its SHA-256, whose
        beginning nobody can choose. The dictionary's slots use another hash, with a secret of this process (PEP 456).
        So the time does not show how close a guess was.
        """
        return self._callers.get(hash_key(key))

    def named(self, name: str) -> tuple[str, Caller] | None:
        """Return the hash and the caller of the key with this name, or None."""
        return next(((hash_, caller) for hash_, caller in self._callers.items() if caller.name == name), None)

    async def watch(self) -> None:
        """Keep the keys up to date until cancelled."""
        # Without growing pauses: a revoked key must not be accepted for long after the database is back.
        await run_periodically("API keys", self._look, REFRESH_S, delay_s=REFRESH_S, longest_pause_s=REFRESH_S)

    async def first_look(self) -> None:
        """Read the keys before the first request; give up after `_FIRST_LOOK_S`, so as not to delay the start."""
        await try_once(self._look, _FIRST_LOOK_S, "The API keys cannot be loaded yet; trying again")

    async def _look(self) -> None:
        keys, self.ended_sessions = await asyncio.to_thread(self._read)
        # Scopes that only a newer release of the gateway knows are ignored.
        self._callers = self._admin | {
            key.hash: Caller(key.name, self._allowed(frozenset(ALL_SCOPES & set(key.scopes)))) for key in keys
        }
        self.complete = True

    def _read(self) -> tuple[list[ApiKey], frozenset[str]]:
        database = self._storage.open()
        return valid_keys(database), ended_sessions(database)

    def _allowed(self, scopes: frozenset[Scope]) -> frozenset[Scope]:
        return ALL_SCOPES if Scope.ADMIN in scopes else scopes | self._everybody
