"""Who may ask what: API keys before everything that costs, and security headers on every answer."""

import ipaddress
import socket
from collections.abc import Collection
from contextlib import closing
from functools import lru_cache

from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as RequestScope

from errors import PipelineError
from gateway.known_keys import ALL_SCOPES, Caller, KnownKeys
from gateway.problems import (
    HostRefusedError,
    KeyNeededError,
    KeyNotAllowedError,
    ProblemError,
    StorageUnavailableError,
)
from gateway.security_headers import Header
from settings import Settings
from storage.api_keys import ANONYMOUS_NAME, Scope, valid_keys
from storage.database import Database

KEY_HEADER = "X-API-Key"
_KEY_HEADER = KEY_HEADER.lower().encode()
_BEARER = b"bearer "
_SHORTEST_ADMIN_KEY = 16
_LONGEST_HOST = 260

OPEN_SCOPES = ALL_SCOPES - {Scope.ADMIN}
"""What anyone may where no keys are needed. What changes what is served needs the admin key everywhere."""


def open_scopes(settings: Settings) -> frozenset[Scope]:
    """What a request without a key may."""
    is_open = settings.access == "open" or (settings.access == "auto" and is_loopback(settings.host))
    return OPEN_SCOPES if is_open else frozenset()


def check_access(settings: Settings) -> None:
    """Raise a PipelineError where other machines could reach a gateway that nobody, or anybody, may use.

    Raises:
        PipelineError: it also says what to do.
    """
    if is_loopback(settings.host):
        return
    given = settings.admin_key
    if given is not None and len(given.get_secret_value()) < _SHORTEST_ADMIN_KEY:
        raise PipelineError(
            f"SENTIMENT_ADMIN_KEY is shorter than {_SHORTEST_ADMIN_KEY} characters, and other machines can reach "
            f"SENTIMENT_HOST={settings.host}; give a longer one, or none, and one is made."
        )
    if settings.access == "auto":
        with closing(Database(settings.database)) as database:
            keys = valid_keys(database)
        if not keys:
            raise PipelineError(
                f"Other machines can reach SENTIMENT_HOST={settings.host}, and there is no API key yet. Make one with "
                "`python app.py keys add NAME --scope predict`, or let anyone ask with SENTIMENT_ACCESS=open."
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


class AccessLayer:
    """Refuses strangers before anything is read or queued for them, and names the caller to what comes after.

    The caller's name is in the request's state as `caller`, what it may as `scopes`. Which of these a route needs is
    for the route to say (`deps.DirectRoute`): only it knows for sure what the path means.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KnownKeys,
        anonymous: frozenset[Scope],
        public_paths: Collection[str],
        local_hosts_only: bool,
        headers: dict[str, list[Header]],
    ) -> None:
        """Take the keys of `keys`.

        Args:
            app: What comes after.
            keys: The keys that are known.
            anonymous: What a request without a key may.
            public_paths: Paths that need no key, and are answered whatever key is given.
            local_hosts_only: Whether names of other hosts are refused in `Host`.
            headers: Headers to add to answers, by path; those of the path "" are for all others.
        """
        self._app = app
        self._keys = keys
        self._anonymous = Caller(ANONYMOUS_NAME, anonymous)
        self._public = frozenset(public_paths)
        self._local_hosts_only = local_hosts_only
        self._headers = headers

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        added = self._headers.get(path) or self._headers[""]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        try:
            caller = self._caller(scope, path)
        except ProblemError as problem:
            await problem.response()(scope, receive, send_with_headers)
            return
        state = scope.setdefault("state", {})
        state["caller"] = caller.name
        state["scopes"] = caller.scopes
        await self._app(scope, receive, send_with_headers)

    def _caller(self, scope: RequestScope, path: str) -> Caller:
        key = host = b""
        for name, value in scope["headers"]:
            if name == _KEY_HEADER:
                key = value
            elif name == b"host":
                host = value
            elif name == b"authorization" and not key and value[: len(_BEARER)].lower() == _BEARER:
                key = value[len(_BEARER) :].strip()
        if self._local_hosts_only and (len(host) > _LONGEST_HOST or not _is_local_name(host)):
            raise HostRefusedError(
                f"The Host {host[:100].decode('latin-1')!r} is not this machine, whose requests alone are answered "
                "without a key; SENTIMENT_ACCESS=keys or =open answers those for any Host."
            )
        if path in self._public:
            return self._anonymous
        if not key:
            if not self._anonymous.scopes:
                raise _key_needed("is missing")
            return self._anonymous
        caller = self._keys.find(key)
        if caller is None:
            if not self._keys.complete:
                raise StorageUnavailableError("The API keys could not be read yet; ask again.")
            raise _key_needed("is wrong")
        return caller


def check_scope(scope: RequestScope, needed: Scope) -> None:
    """Raise unless the request may do what needs `needed`.

    Raises:
        KeyNeededError: it came without a key.
        KeyNotAllowedError: its key is for other things.
    """
    state = scope["state"]
    if needed in state["scopes"]:
        return
    if state["caller"] == ANONYMOUS_NAME:
        raise _key_needed("is missing")
    raise KeyNotAllowedError(
        f"The key {state['caller']} is for {', '.join(sorted(state['scopes']))}; this needs {needed.value}."
    )


def _key_needed(fault: str) -> KeyNeededError:
    return KeyNeededError(f"The header {KEY_HEADER} {fault}; this needs an API key.")


@lru_cache(maxsize=256)
def _is_local_name(host: bytes) -> bool:
    """Whether `Host` is an address or a name that no public name server gives.

    A page whose own name is made to point to 127.0.0.1 (DNS rebinding) could otherwise have its visitor's browser ask
    what is open to this machine alone. Such a name has a dot.
    """
    name = host.decode("latin-1").lower()
    if name.startswith("["):  # IPv6
        return True
    name = name.partition(":")[0].rstrip(".")
    return "." not in name or name.endswith(".localhost") or name.replace(".", "").isdecimal()
