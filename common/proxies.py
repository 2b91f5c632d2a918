"""Prepares the proxy variables (`http_proxy`, `ALL_PROXY`, `NO_PROXY`, …) for the HTTP clients of this process.

Proxies lead out of the network: to the Hugging Face hub, PyPI, webhooks, and a distant MLflow server or trace
collector. Tritons and gateways are never called through one (`serving.client.triton_client`), and neither is anything
on this machine.
"""

import ipaddress
import re
from collections.abc import MutableMapping

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = re.compile(r"[^\s:/\[\]]+(:\d{1,5})?")


def prepare_proxies(environment: MutableMapping[str, str]) -> None:
    """Make the proxy variables of `environment` safe for httpx and requests, and exempt this machine from the proxies.

    - `NO_PROXY` gets the names of this machine. URLs become their host and port, because only httpx matches a URL. IPv6
      addresses lose their brackets. Networks of IPv6 and entries without a host are removed: httpx refuses to start
      because of them.
    - `ALL_PROXY` is removed if every URL has a proxy of its own scheme, `http_proxy` or `https_proxy`. It would never
      be used, but its scheme alone, such as `socks://`, lets httpx refuse to start.
    """
    entries = _value(environment, "no_proxy").replace(",", " ").split()
    if "*" not in entries:
        kept = [*filter(None, map(_host, entries)), *_LOOPBACK]
        for name in ("no_proxy", "NO_PROXY"):
            environment[name] = ",".join(dict.fromkeys(kept))
    if _value(environment, "http_proxy") and _value(environment, "https_proxy"):
        for name in ("all_proxy", "ALL_PROXY"):
            environment.pop(name, None)


def _value(environment: MutableMapping[str, str], name: str) -> str:
    """Return a variable's value; lower case goes first, as in Python's libraries and curl."""
    return environment.get(name) or environment.get(name.upper(), "")


def _host(entry: str) -> str:
    """Return the address, network or host of an entry of `NO_PROXY` as httpx accepts it; empty if there is none."""
    if scheme := _SCHEME.match(entry):
        entry = entry[scheme.end() :].rstrip("/")
    address = entry.strip("[]")
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        pass
    try:
        return "" if ipaddress.ip_network(address, strict=False).version == 6 else address
    except ValueError:
        return entry if _HOST.fullmatch(entry) else ""
