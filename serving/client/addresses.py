"""Finds the addresses of the Tritons: `SENTIMENT_TRITON_URL` lists them, or gives a DNS name that resolves to them."""

import socket

from common.errors import PipelineError
from common.triton_addresses import DNS, parse


def find(url: str) -> list[str]:
    """Return the current address of each Triton; a part `dns:///name:port` stands for all addresses of the name.

    Raises:
        PipelineError: a name cannot be resolved.
    """
    found: dict[str, None] = {}
    for part in parse(url):
        for address in _resolve(part.removeprefix(DNS)) if part.startswith(DNS) else [part]:
            found[address] = None
    return list(found)


def is_fixed(url: str) -> bool:
    """Return whether `url` lists fixed addresses, without a DNS name."""
    return not any(part.startswith(DNS) for part in parse(url))


def _resolve(host_and_port: str) -> list[str]:
    host, _, port = host_and_port.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise PipelineError(f"The name {host} of Triton's addresses cannot be resolved: {error.strerror}.") from error
    addresses = {str(address[0]) for _, _, _, _, address in found}
    return sorted(f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address in addresses)
