"""API keys and their scopes."""

import hashlib
import re
import secrets
from collections.abc import Sequence
from enum import StrEnum

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from common.errors import PipelineError
from storage import events
from storage.database import Database, now
from storage.events import EventKind
from storage.tables import ApiKey

KEY_PREFIX = "sentiment_"
"""Prefix of each key, so that people and secret scanners recognise it."""
_KEY_BYTES = 32
ADMIN_NAME = "admin"
"""Name of the caller with the admin key of the settings, which is not in the database."""
ANONYMOUS_NAME = "anonymous"
"""Name of a caller without a key."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


class Scope(StrEnum):
    """A right that a key can give."""

    PREDICT = "predict"
    FEEDBACK = "feedback"
    READ = "read"
    """Metrics, versions, jobs and events, without texts that users wrote."""
    TEXTS = "texts"
    """Texts that users wrote: texts to label, feedback, and texts on which two versions differ."""
    ADMIN = "admin"
    """All rights."""


def hash_key(key: bytes) -> str:
    """Return the SHA-256 hash of a key, which is stored instead of the key.

    A fast hash is enough, because a key has 256 random bits and cannot be guessed. Slow salted hashes (Argon2, bcrypt)
    protect passwords that people choose; here they would only slow down each request.
    """
    return hashlib.sha256(key).hexdigest()


def add_key(database: Database, name: str, scopes: Sequence[Scope]) -> str:
    """Create a key and return it. It cannot be read again.

    Raises:
        PipelineError: the name is not allowed, or belongs to a valid key.
    """
    if name in (ADMIN_NAME, ANONYMOUS_NAME):
        raise PipelineError(f"The name {name} is reserved. Choose another.")
    if not _NAME.fullmatch(name):
        raise PipelineError(
            f"The name {name[:80]!r} is invalid. Use up to 60 letters, digits, dots, dashes and underscores."
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
            f"The key {name} already exists. To rotate it, add one under another name, switch to it, and revoke {name}."
        ) from error
    return key


def revoke_key(database: Database, name: str) -> None:
    """Revoke the key with this name.

    Raises:
        PipelineError: no valid key has the name.
    """
    with database.transaction() as session:
        key = session.scalar(select(ApiKey).where(ApiKey.name == name, ApiKey.revoked_at.is_(None)))
        if key is None:
            raise PipelineError(f"There is no valid key {name[:80]!r}. `python app.py keys list` shows the valid keys.")
        key.revoked_at = now(session)
        events.record(session, EventKind.KEY_REVOKED, f"The API key {name} was revoked.")


def valid_keys(database: Database) -> list[ApiKey]:
    """Return the keys that are not revoked, oldest first."""
    with database.reading() as session:
        return list(session.scalars(select(ApiKey).where(ApiKey.revoked_at.is_(None)).order_by(ApiKey.id)))
