"""Access control: checks API keys before any costly work, and adds security headers to every response."""

import ipaddress
import socket
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache

from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as RequestScope

from common.errors import PipelineError
from common.settings import Settings
from gateway.auth.key_cache import ALL_SCOPES, Caller, KnownKeys
from gateway.auth.sessions import Sessions
from gateway.auth.wrong_keys import WrongKeys
from gateway.http.http_protocol import CONNECTION
from gateway.http.problems import (
    HostRefusedError,
    KeyNeededError,
    KeyNotAllowedError,
    ProblemError,
    StorageUnavailableError,
)
from gateway.http.security_headers import Header
from storage.api_keys import ANONYMOUS_NAME, Scope, valid_keys
from storage.database import Database

KEY_HEADER = "X-API-Key"
_KEY_HEADER = KEY_HEADER.lower().encode()
_BEARER = b"bearer "
PAGES = "/console/"
"""Beginning of the console's paths except `/`. They need no key here: each page checks the scopes that it needs."""
_SHORTEST_ADMIN_KEY = 16
_LONGEST_HOST = 260

OPEN_SCOPES = ALL_SCOPES - {Scope.ADMIN, Scope.TEXTS}
"""Scopes of a request without a key, on a gateway that requires none. Changes and users' texts always need a key."""


def open_scopes(settings: Settings) -> frozenset[Scope]:
    """Return the scopes of a request without a key."""
    is_open = settings.access == "open" or (settings.access == "auto" and is_loopback(settings.host))
    return OPEN_SCOPES if is_open else frozenset()


def check_access(settings: Settings) -> None:
    """Check a gateway that other machines can reach: no short admin key, and an API key if access is `auto`.

    Raises:
        PipelineError: the check failed; the message says what to do.
    """
    if is_loopback(settings.host):
        return
    given = settings.admin_key
    if given is not None and len(given.get_secret_value()) < _SHORTEST_ADMIN_KEY:
        raise PipelineError(
            f"SENTIMENT_ADMIN_KEY is shorter than {_SHORTEST_ADMIN_KEY} characters, but other machines can reach "
            f"SENTIMENT_HOST={settings.host}. Set a longer key, or unset it to have one generated."
        )
    if settings.access == "auto":
        with closing(Database(settings.database)) as database:
            keys = valid_keys(database)
        if not keys:
            raise PipelineError(
                f"Other machines can reach SENTIMENT_HOST={settings.host}, but there is no API key yet. Create one "
                "with `python app.py keys add NAME --scope predict`, or allow predictions without a key with "
                "SENTIMENT_ACCESS=open."
            )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens on `host`."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


@dataclass(eq=False, repr=False)
class AccessLayer:
    """Refuses requests without valid access before anything is read or queued, and identifies the caller.

    The request's state gets the caller's name as `caller`, its scopes as `scopes`, and on the console's pages its
    session as `session`. Each route checks the scopes that it needs (`gateway.routes.direct_route`), because only the
    route knows for sure what the path means.
    """

    app: ASGIApp
    """The next layer."""
    keys: KnownKeys
    anonymous: Caller
    """The caller of a request without a key."""
    public_paths: frozenset[str]
    """Paths that need no key, and ignore a given key."""
    local_hosts_only: bool
    """True if requests with another machine's name in `Host` are refused."""
    headers: dict[str, list[Header]]
    """Headers to add to responses, by path; those of the path "" are for all other paths that are no page."""
    page_headers: list[Header]
    """Headers to add to responses for pages that `headers` does not name, also for those that do not exist."""
    sessions: Sessions
    """On pages, a session grants the scopes of its key."""
    wrong_keys: WrongKeys

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"]
        is_page = path == "/" or path.startswith(PAGES)
        added = self.headers.get(path) or (self.page_headers if is_page else self.headers[""])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        try:
            caller = self._caller(scope, is_page or path in self.public_paths)
        except ProblemError as problem:
            await problem.response()(scope, receive, send_with_headers)
            return
        state = scope.setdefault("state", {})
        session = self.sessions.of_request(scope["headers"]) if is_page else None
        if session is not None:
            caller = Caller(session.caller.name, caller.scopes | session.caller.scopes)
        state["session"] = session
        state["caller"] = caller.name
        state["scopes"] = caller.scopes
        if caller is not self.anonymous and CONNECTION in state:
            state[CONNECTION].recognize()
        await self.app(scope, receive, send_with_headers)

    def _caller(self, scope: RequestScope, is_public: bool) -> Caller:
        key = host = b""
        for name, value in scope["headers"]:
            if name == _KEY_HEADER:
                key = value
            elif name == b"host":
                host = value
            elif name == b"authorization" and not key and value[: len(_BEARER)].lower() == _BEARER:
                key = value[len(_BEARER) :].strip()
        if self.local_hosts_only and (len(host) > _LONGEST_HOST or not _is_local_name(host)):
            raise HostRefusedError(
                f"The Host {host[:100].decode('latin-1')!r} does not name this machine. Use localhost or an address, "
                "or set SENTIMENT_ACCESS to keys or open, which accept any Host."
            )
        if is_public:
            return self.anonymous
        if not key:
            if not self.anonymous.scopes:
                raise _key_needed("is missing")
            return self.anonymous
        caller = self.keys.find(key)
        if caller is None:
            if not self.keys.complete:
                raise StorageUnavailableError("The API keys are not loaded yet; try again.")
            self.wrong_keys.count(scope)
            raise _key_needed("is wrong")
        return caller


def check_scope(scope: RequestScope, needed: Scope) -> None:
    """Raise an error unless the request has the scope `needed`.

    Raises:
        KeyNeededError: the request has no key.
        KeyNotAllowedError: the request's key lacks the scope.
    """
    state = scope["state"]
    if needed in state["scopes"]:
        return
    if state["caller"] == ANONYMOUS_NAME:
        raise _key_needed("is missing")
    raise KeyNotAllowedError(
        f"The key {state['caller']} lacks the scope {needed.value}; it has {', '.join(sorted(state['scopes']))}."
    )


def _key_needed(fault: str) -> KeyNeededError:
    return KeyNeededError(f"The header {KEY_HEADER} {fault}; this needs an API key.")


@lru_cache(maxsize=256)
def _is_local_name(host: bytes) -> bool:
    """Return whether `Host` is an address, or a name that no public name server resolves.

    Without this check, a page could make its own name point to 127.0.0.1 (DNS rebinding), and let its visitor's browser
    send requests that are allowed from this machine alone. Such a name has a dot.
    """
    name = host.decode("latin-1").lower()
    if name.startswith("["):  # IPv6
        return True
    name = name.partition(":")[0].rstrip(".")
    return "." not in name or name.endswith(".localhost") or name.replace(".", "").isdecimal()
