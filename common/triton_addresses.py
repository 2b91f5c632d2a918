"""Formats of Triton addresses: those in `SENTIMENT_TRITON_URL`, and the bundled Triton's UNIX sockets."""

import re
from pathlib import Path
from urllib.parse import quote, unquote

UNIX = "unix:"
"""Prefix of the address of a UNIX socket."""
DNS = "dns:///"
"""Prefix of a name that stands for all its resolved addresses."""
_HOST_AND_PORT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/\[\],]+):([0-9]{1,5})")


def parse(url: str) -> list[str]:
    """Return the comma-separated parts of `url`; each is `host:port`, `dns:///name:port` or `unix:/path`.

    Raises:
        ValueError: a part has none of these formats; the message names it.
    """
    parts = [part.strip() for part in url.split(",")]
    for part in parts:
        if part.startswith(f"{UNIX}/"):
            continue
        match = _HOST_AND_PORT.fullmatch(part.removeprefix(DNS))
        if match is None or not 0 < int(match[2]) < 65_536:
            raise ValueError(f"{part!r} is no address of a Triton; it is host:port, dns:///name:port or unix:/path")
    return list(dict.fromkeys(parts))


def socket_address(path: Path) -> str:
    """Return the address of a UNIX socket for `parse`, percent-encoded so that it contains no comma."""
    return UNIX + quote(str(path), safe="/:")


def socket_path(address: str) -> Path:
    """Return the path of an address from `socket_address`."""
    return Path(unquote(address.removeprefix(UNIX)))
