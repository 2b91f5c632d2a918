"""The UNIX sockets of the bundled Triton, in a directory that only the pipeline's own user can enter.

Every account of the machine can connect to a TCP port on loopback, or bind it while Triton restarts. A socket in a
directory of mode 0700 prevents both. The directory is opened and checked, and then used through `/proc/self/fd`. So
nobody can replace it after the check, and its path may have any characters and any length (the path of a socket is
limited to 107 bytes).
"""

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from common.errors import PipelineError
from common.triton_addresses import UNIX, socket_path
from common.triton_addresses import socket_address as address_of

HELD = "/proc/self/fd/"
"""Prefix of the paths through which sockets are opened."""

_held: dict[str, int] = {}
"""File descriptors of this process's open directories, by path. They stay open, because gRPC channels may reconnect at
any time."""


def grpc_target(socket_address: str) -> str:
    """Return the gRPC target for the address of a socket.

    Raises:
        PipelineError: the directory cannot be used, or another account has access to it.
    """
    return UNIX + private_path(socket_path(socket_address))


def private_path(path: Path) -> str:
    """Check that the socket's directory is private, and return a short path of the socket; create a missing directory.

    Raises:
        PipelineError: the directory cannot be used, or another account has access to it.
    """
    return f"{HELD}{_hold(path.parent)}/{path.name}"


def is_listening(socket_address: str) -> bool:
    """Return whether a process accepts connections at the address of a socket."""
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.connect(private_path(socket_path(socket_address)))
        return True
    return False


def neighbours(socket_address: str) -> list[str]:
    """Return the addresses at which processes accept connections: this one, and those of other ports beside it.

    Raises:
        PipelineError: the directory cannot be used, or another account has access to it.
    """
    path = socket_path(socket_address)
    name = path.name.partition(":")[0]
    addresses = [socket_address, *map(address_of, sorted(path.parent.glob(f"{name}:*")))]
    return list(dict.fromkeys(filter(is_listening, addresses)))


def _hold(directory: Path) -> int:
    key = str(directory)
    held = _held.get(key)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise PipelineError(
            f"{directory}, the directory of Triton's sockets, cannot be used: {error.strerror}."
        ) from error
    status = os.fstat(found)
    if held is not None and os.path.sameopenfile(held, found):
        os.close(found)
        found = held
    fault = _fault(status)
    if fault:
        raise PipelineError(
            f"{directory}, the directory of Triton's sockets, {fault}: another account could control Triton "
            "or answer in its place. Give it to the user that runs the pipeline, with `chmod 700`, or remove it."
        )
    _held[key] = found
    return found


def _fault(status: os.stat_result) -> str:
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}, not to user {os.geteuid()}"
    if stat.S_IMODE(status.st_mode) & 0o077:
        return f"is open to other accounts (mode {stat.S_IMODE(status.st_mode):o})"
    return ""
