"""Console sessions: a cookie stands for an API key, and never contains it.

A session is the name of a key, a fingerprint of that key and a random number, signed with a secret that is derived from
the admin key. So gateways with the same admin key accept each other's sessions, even while the database is down. A
session ends with its key, or when the admin key changes. The database stores only the sessions that somebody has ended.

A cookie alone shows pages and changes nothing: browsers send it to every port of a host, so a program on another port
may have it. A change also needs the session's action token. Only the sign-in response contains the token, and the
browser keeps it where only pages of this port can read it.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from itsdangerous import BadData, Signer, URLSafeTimedSerializer

from gateway.auth.key_cache import Caller, KnownKeys
from storage.api_keys import hash_key

LIFETIME_S = 12 * 3_600
"""Lifetime of a session: a working day. Afterwards, the user must sign in again."""


@dataclass(frozen=True)
class Session:
    """The session of a signed-in user."""

    caller: Caller
    id: str
    """Random ID. The cookie cannot be the ID: the last letter of a signature can be written in several ways."""
    ends_at: datetime
    """Time when the session expires."""

    @property
    def allowed(self) -> str:
        """The scopes of the key, as text."""
        return ", ".join(sorted(self.caller.scopes))


class Sessions:
    """Starts, finds and ends the sessions of one gateway."""

    def __init__(self, keys: KnownKeys, admin_key: str, port: int, is_https: bool) -> None:
        """Start sessions for the keys in `keys`."""
        self._keys = keys
        # Slow to derive: with a cookie, an attacker can try to guess an admin key made up by an operator.
        secret = hashlib.scrypt(admin_key.encode(), salt=b"sessions of the console", n=2**14, r=8, p=1)
        self._cookies = URLSafeTimedSerializer(
            secret,
            salt="session of the console",
            signer_kwargs={"digest_method": hashlib.sha256, "key_derivation": "hmac"},
        )
        self._actions = Signer(
            secret, salt="action of the console", digest_method=hashlib.sha256, key_derivation="hmac"
        )
        self._is_https = is_https
        self._started = datetime.now(UTC).replace(microsecond=0)
        self._ended_here: dict[str, datetime] = {}
        # The port is in the name because cookies are shared by all ports, and two pipelines on one machine must not end
        # each other's sessions. The prefix makes browsers refuse this cookie from other hosts.
        self.cookie_name = f"{'__Host-' if is_https else ''}sentiment_{port}"
        self._cookie = re.compile(
            rb"(?:^|;)\s*" + re.escape(self.cookie_name.encode()) + rb"=([\w.-]{1,1000})\s*(?:;|$)"
        )

    def begin(self, key: bytes) -> tuple[Session, str] | None:
        """Sign in with `key`, and return the session and its cookie, or None if the key is unknown."""
        caller = self._keys.find(key)
        if caller is None:
            return None
        cookie = str(self._cookies.dumps([caller.name, _fingerprint(hash_key(key)), secrets.token_urlsafe(16)]))
        session = self.find(cookie)
        return (session, cookie) if session else None

    def of_request(self, headers: Iterable[tuple[bytes, bytes]]) -> Session | None:
        """Return the session that a request's cookies name, or None."""
        for name, value in headers:
            if name == b"cookie" and (match := self._cookie.search(value)):
                return self.find(match[1].decode())
        return None

    def find(self, cookie: str) -> Session | None:
        """Return the session of a cookie, or None if the cookie is invalid or the session is over."""
        try:
            (name, fingerprint, id_), begun_at = self._cookies.loads(cookie, max_age=LIFETIME_S, return_timestamp=True)
        except BadData:
            return None
        known = self._keys.named(name)
        if known is None or fingerprint != _fingerprint(known[0]):
            return None
        if id_ in self._keys.ended_sessions or id_ in self._ended_here:
            return None
        # Until the ended sessions are known, any session from before this gateway's start may be one of them.
        if not self._keys.complete and begun_at < self._started:
            return None
        return Session(known[1], id_, begun_at + timedelta(seconds=LIFETIME_S))

    def end(self, session: Session) -> None:
        """End a session on this gateway. Other gateways end it once the database has it."""
        now = datetime.now(UTC)
        self._ended_here = {id_: ends_at for id_, ends_at in self._ended_here.items() if ends_at > now}
        self._ended_here[session.id] = session.ends_at

    def action_token(self, session: Session) -> str:
        """Return the token that changes need besides the cookie. Send it only in response to a request with the key."""
        return self._actions.get_signature(session.id).decode()

    def may_act(self, session: Session, token: str) -> bool:
        """Return whether `token` is the action token of `session`."""
        return self._actions.verify_signature(session.id, token.encode())

    def is_key_of(self, session: Session, key: str) -> bool:
        """Return whether `session` stands for `key`."""
        return self._keys.find(key.encode()) == session.caller

    def set_cookie(self, cookie: str) -> str:
        """Return the `Set-Cookie` header with which a browser stores `cookie`, or deletes the cookie if it is empty."""
        age = LIFETIME_S if cookie else 0
        secure = "; Secure" if self._is_https else ""
        return f"{self.cookie_name}={cookie}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"


def _fingerprint(key_hash: str) -> str:
    """Return a fingerprint that differs between keys of one name, but is not the hash that the database compares."""
    return hashlib.sha256(f"session {key_hash}".encode()).hexdigest()[:32]
