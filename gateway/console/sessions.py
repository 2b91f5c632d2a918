"""Who is signed in: a cookie that stands for an API key, and never holds it.

A session is an end time, a random number and the name of a key, signed by the gateway: HMAC-SHA256 (RFC 2104) of these
and of the key's hash, with a secret that is derived from the admin key. So nothing is kept that had to be shared:
gateways with one admin key know each other's sessions, also while the database is down, and a session ends with its
key, or when the admin key is changed.
"""

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass

from gateway.known_keys import Caller, KnownKeys
from storage.api_keys import hash_key

LIFETIME_S = 12 * 3_600
"""A working day; after that the key is asked for again."""
_SEPARATOR = "~"
"""No name of a key has it, and a cookie may."""


@dataclass(frozen=True)
class Session:
    """Somebody who is signed in."""

    caller: Caller
    cookie: str
    csrf_token: str
    """What a page of this session's sends with each change, and no other site can know."""

    @property
    def allowed(self) -> str:
        """What the key is for, in words."""
        return ", ".join(sorted(self.caller.scopes))


class Sessions:
    """Begins, knows and ends the sessions of one gateway."""

    def __init__(self, keys: KnownKeys, admin_key: str, port: int, is_https: bool) -> None:
        """Take the keys of `keys`."""
        self._keys = keys
        self._secret = hmac.digest(admin_key.encode(), b"sessions of the console", "sha256")
        self._is_https = is_https
        # Browsers do not tell ports apart, and two pipelines on one machine must not end each other's sessions. The
        # prefix is for browsers: it lets no other host set the cookie.
        self.cookie_name = f"{'__Host-' if is_https else ''}sentiment_{port}"
        self._ended: dict[str, int] = {}
        """Until when the cookies of those who signed out would have been good."""

    def begin(self, key: bytes) -> Session | None:
        """Sign in whoever has `key`; none where it is nobody's."""
        caller = self._keys.find(key)
        if caller is None:
            return None
        ends = int(time.time()) + LIFETIME_S
        content = _SEPARATOR.join((str(ends), secrets.token_urlsafe(16), caller.name))
        signature = self._sign("session", content, hash_key(key))
        return self._session(caller, f"{content}{_SEPARATOR}{signature}")

    def find(self, cookie: str) -> Session | None:
        """Whose session a cookie is; none where it is none, or is over."""
        content, _, signature = cookie.rpartition(_SEPARATOR)
        ends, _, rest = content.partition(_SEPARATOR)
        known = self._keys.named(rest.partition(_SEPARATOR)[2])
        if known is None or not ends.isdecimal() or not ends.isascii() or cookie in self._ended:
            return None
        hash_, caller = known
        is_true = hmac.compare_digest(signature.encode(), self._sign("session", content, hash_).encode())
        return self._session(caller, cookie) if is_true and int(ends) > time.time() else None

    def end(self, session: Session) -> None:
        """Sign out: also whoever else has the cookie is signed out here."""
        now = time.time()
        self._ended = {cookie: ends for cookie, ends in self._ended.items() if ends > now}
        self._ended[session.cookie] = int(session.cookie.partition(_SEPARATOR)[0])

    def set_cookie(self, session: Session | None) -> str:
        """The header `Set-Cookie` with which a browser keeps a session, or forgets it."""
        value, age = (session.cookie, LIFETIME_S) if session else ("", 0)
        secure = "; Secure" if self._is_https else ""
        return f"{self.cookie_name}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"

    def _session(self, caller: Caller, cookie: str) -> Session:
        return Session(caller, cookie, self._sign("csrf", cookie))

    def _sign(self, *parts: str) -> str:
        return hmac.new(self._secret, "\n".join(parts).encode(), hashlib.sha256).hexdigest()
