"""API keys: who may ask, and for what."""

import hashlib
import re
import secrets
from collections.abc import Sequence
from enum import Enum

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from errors import PipelineError
from storage import events
from storage.database import Database, now
from storage.events import EventKind
from storage.tables import ApiKey

KEY_PREFIX = "sentiment_"
"""Begins each key, so that people, and programs that look for leaked secrets, know one when they see it."""
_KEY_BYTES = 32
ADMIN_NAME = "admin"
"""Names who has the admin key of the settings, which is not in the database."""
ANONYMOUS_NAME = "anonymous"
"""Names who came without a key."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


class Scope(str, Enum):
    """What a key allows."""

    PREDICT = "predict"
    FEEDBACK = "feedback"
    READ = "read"
    """Metrics, versions, jobs and events."""
    ADMIN = "admin"
    """Everything."""


def hash_key(key: bytes) -> str:
    """What is kept of a key.

    A plain SHA-256: a key is 256 random bits, which nobody finds by trying, however fast each try is. Slow hashes with
    salts (Argon2, bcrypt) are for what people think up; here they would only make each request slow.
    """
    return hashlib.sha256(key).hexdigest()


def add_key(database: Database, name: str, scopes: Sequence[Scope]) -> str:
    """Make a key and return it, for the only time.

    Raises:
        PipelineError: the name does not fit, or is that of a valid key.
    """
    if name in (ADMIN_NAME, ANONYMOUS_NAME):
        raise PipelineError(f"The name {name} is taken: the log means others by it.")
    if not _NAME.fullmatch(name):
        raise PipelineError(
            f"The name {name[:80]!r} does not fit; up to 60 letters, digits, dots, dashes and underscores do."
        )
    key = KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    allowed = sorted({scope.value for scope in scopes})
    try:
        with database.transaction() as session:
            session.add(
                ApiKey(name=name, hash=hash_key(key.encode()), scopes=allowed, created_at=now(session), revoked_at=None)
            )
            session.flush()
            events.record(session, EventKind.KEY_ADDED, f"The API key {name} was added, for {', '.join(allowed)}.")
    except IntegrityError as error:
        raise PipelineError(
            f"There is a key {name} already. To rotate it, add one by another name, have it used, and revoke {name}."
        ) from error
    return key


def revoke_key(database: Database, name: str) -> None:
    """Have the key of this name no longer be valid.

    Raises:
        PipelineError: no valid key has the name.
    """
    with database.transaction() as session:
        key = session.scalar(select(ApiKey).where(ApiKey.name == name, ApiKey.revoked_at.is_(None)))
        if key is None:
            raise PipelineError(f"There is no valid key {name[:80]!r}; `python app.py keys list` shows those that are.")
        key.revoked_at = now(session)
        events.record(session, EventKind.KEY_REVOKED, f"The API key {name} was revoked.")


def valid_keys(database: Database) -> list[ApiKey]:
    """The keys that were not revoked, the oldest first."""
    with database.reading() as session:
        return list(session.scalars(select(ApiKey).where(ApiKey.revoked_at.is_(None)).order_by(ApiKey.id)))
