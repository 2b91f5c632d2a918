"""Identifies the caller of a request, for limits and turns per caller.

All addresses of one machine or one subscriber count as one client.
"""

import ipaddress
from contextvars import ContextVar
from functools import lru_cache
from urllib.parse import unquote

from starlette.types import Scope

from storage.api_keys import ANONYMOUS_NAME

_LOOPBACK = "this machine"
_SUBSCRIBER_BITS = 64
"""Bits of an IPv6 address that identify a subscriber: a subscriber gets at least this whole network."""

current_caller: ContextVar[str] = ContextVar("current_caller", default="")
"""The caller of the current request."""


def caller_of(scope: Scope) -> str:
    """Return the caller of a request: the name of its key, or its address without a key."""
    name = scope.get("state", {}).get("caller", ANONYMOUS_NAME)
    return f"key {name}" if name != ANONYMOUS_NAME else f"address {client_address(scope)}"


def scope_of_call(caller: str, peer: str) -> Scope:
    """Return an ASGI scope that counts a gRPC call like a request; `peer` is such as `ipv4:127.0.0.1:50000`."""
    return {"state": {"caller": caller}, "client": (address_of_peer(peer), 0)}


def address_of_peer(peer: str) -> str:
    """Return the address in a gRPC peer such as `ipv4:127.0.0.1:50000` or `ipv6:%5B::1%5D:50000`."""
    return unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")


def client_address(scope: Scope) -> str:
    """Return the address group that a request counts for; empty without an address, as on a Unix socket."""
    return address_group(scope["client"][0]) if scope.get("client") else ""


@lru_cache(maxsize=4_096)
def address_group(address: str) -> str:
    """Return the group that an address counts for: this machine, an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            network = ipaddress.ip_network((int(parsed) >> _SUBSCRIBER_BITS << _SUBSCRIBER_BITS, _SUBSCRIBER_BITS))
            return _LOOPBACK if parsed.is_loopback else str(network)
        parsed = parsed.ipv4_mapped
    return _LOOPBACK if parsed.is_loopback else str(parsed)
