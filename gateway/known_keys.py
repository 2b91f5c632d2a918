"""The API keys that a gateway knows, kept in memory and up to date."""

import asyncio
import logging
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from errors import PipelineError
from storage.api_keys import ADMIN_NAME, Scope, hash_key, valid_keys
from storage.storage import Storage

REFRESH_S = 1.0
"""So long after it was added or revoked a key is, or is no longer, taken, and what the look into the database takes."""
_FIRST_LOOK_S = 5.0

log = logging.getLogger(__name__)

ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose key a request came with."""

    name: str
    scopes: frozenset[Scope]


class KnownKeys:
    """Who has which key. The last that were known are taken while the database is down."""

    def __init__(self, storage: Storage, admin_key: str, everybody: frozenset[Scope]) -> None:
        """Know the admin key, and those in `storage` once it has been looked; each allows what `everybody` may too."""
        self._storage = storage
        self._everybody = everybody
        self._admin = {hash_key(admin_key.encode()): Caller(ADMIN_NAME, ALL_SCOPES)}
        self._callers = self._admin
        self._works = True
        self.complete = False
        """Whether the database has been read once."""

    def find(self, key: bytes) -> Caller | None:
        """Whose key this is.

        Constant in time, as far as a caller can use: what is compared is not the key but its SHA-256, of which nobody
        can choose how it begins, and that in a dictionary, whose slots go by another hash with a secret of this
        process (PEP 456). How near a guess was does not show.
        """
        return self._callers.get(hash_key(key))

    def named(self, name: str) -> tuple[str, Caller] | None:
        """The hash of the key of this name, and whose it is; none where there is no such key."""
        return next(((hash_, caller) for hash_, caller in self._callers.items() if caller.name == name), None)

    async def watch(self) -> None:
        """Keep knowing, until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_S)
            await self._look()

    async def first_look(self) -> None:
        """Learn the keys, so that the first request finds its own known; no longer than a start may be held up."""
        try:
            await asyncio.wait_for(self._look(), _FIRST_LOOK_S)
        except asyncio.TimeoutError:
            log.warning("The API keys could not be read within %.0f s; trying again.", _FIRST_LOOK_S)

    async def _look(self) -> None:
        try:
            keys = await asyncio.to_thread(lambda: valid_keys(self._storage.open()))
        except (PipelineError, SQLAlchemyError) as error:
            if self._works:
                log.warning("The API keys cannot be read now; the last known are taken: %s", error)
            self._works = False
            return
        # A scope that only a newer release knows is passed over.
        self._callers = self._admin | {
            key.hash: Caller(key.name, self._allowed(frozenset(ALL_SCOPES & set(key.scopes)))) for key in keys
        }
        self._works = self.complete = True

    def _allowed(self, scopes: frozenset[Scope]) -> frozenset[Scope]:
        return ALL_SCOPES if Scope.ADMIN in scopes else scopes | self._everybody
