"""Reserves `localhost` for the gateway if the gateway listens only on an IPv4 address."""

import errno
import logging
import socket
from collections.abc import Sequence

log = logging.getLogger(__name__)


def hold_localhost(host: str, ports: Sequence[int]) -> list[socket.socket]:
    """Bind `ports` on ::1 without listening, and return the sockets; the caller closes them at shutdown.

    For `localhost`, many programs try ::1 first, and 127.0.0.1 if ::1 refuses the connection. If another user of the
    machine listened on ::1, that user would receive texts and keys meant for the gateway.
    """
    held: list[socket.socket] = []
    if any(family == socket.AF_INET6 for family, *_ in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)):
        return held  # the gateway itself listens on IPv6
    for port in ports:
        taken = None
        try:
            # Without SO_REUSEADDR, so that nobody else can bind the port, whatever options they set.
            taken = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
            taken.bind(("::1", port))
            held.append(taken)
        except OSError as error:
            if taken is not None:
                taken.close()
            if error.errno == errno.EADDRINUSE:
                log.warning(
                    "Another program listens on [::1]:%d. Clients of localhost:%d may reach that program instead; have "
                    "them use 127.0.0.1:%d.",
                    port,
                    port,
                    port,
                )
    return held
