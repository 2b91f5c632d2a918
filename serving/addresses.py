"""Where Tritons are: the addresses that `SENTIMENT_TRITON_URL` names, one by one or by a name that resolves to them."""

import re
import socket

from errors import PipelineError

_DNS = "dns:///"
_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\],]+):([0-9]{1,5})")


def parse(url: str) -> list[str]:
    """The parts of `url`, which commas separate: each is `host:port` or `dns:///name:port`.

    Raises:
        ValueError: a part is neither; the message says which.
    """
    parts = [part.strip() for part in url.split(",")]
    for part in parts:
        match = _HOST_AND_PORT.fullmatch(part.removeprefix(_DNS))
        if match is None or not 0 < int(match[2]) < 65_536:
            raise ValueError(f"{part!r} is no address of a Triton; it is host:port, or dns:///name:port")
    return list(dict.fromkeys(parts))


def find(url: str) -> list[str]:
    """Every Triton's `host:port` now: a part `dns:///name:port` stands for all addresses that the name has.

    Raises:
        PipelineError: a name cannot be resolved.
    """
    found: dict[str, None] = {}
    for part in parse(url):
        for address in _resolve(part.removeprefix(_DNS)) if part.startswith(_DNS) else [part]:
            found[address] = None
    return list(found)


def is_fixed(url: str) -> bool:
    """Whether `url` names each Triton, so that they are always the same."""
    return not any(part.startswith(_DNS) for part in parse(url))


def _resolve(host_and_port: str) -> list[str]:
    host, _, port = host_and_port.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise PipelineError(f"The name {host} of Triton's addresses cannot be resolved: {error.strerror}.") from error
    addresses = {str(address[0]) for _, _, _, _, address in found}
    return sorted(f"[{address}]:{port}" if ":" in address else f"{address}:{port}" for address in addresses)
