"""What another account of the machine, or a neighbour in the network, tries against a pipeline.

`python another_account.py USER`, with what to try as JSON on standard input: started as root, it becomes the account
before it does anything, and prints what it got as JSON. An empty object is what it should get.
"""

import contextlib
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Got = dict[str, Any]
_BYTES = 1 << 20


def read_everything(roots: list[str]) -> Got:
    """The directories that it can list and the files that it can read under `roots`, with their content."""
    return {path: content for root in roots for path, content in _readable(Path(root))}


def _readable(path: Path) -> Iterator[tuple[str, str]]:
    with contextlib.suppress(OSError):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            entries = sorted(path.iterdir())
            yield str(path), "can be listed"
            for entry in entries:
                yield from _readable(entry)
        elif stat.S_ISREG(mode):
            with path.open("rb") as file:
                yield str(path), file.read(_BYTES).decode("latin-1")


def write_anything(roots: list[str]) -> Got:
    """The directories under `roots` in which it can make a file."""
    got = {}
    for root in roots:
        for directory in (root, *(entry.path for entry in _entries(root) if entry.is_dir(follow_symlinks=False))):
            with contextlib.suppress(OSError):
                (Path(directory) / "of-another-account").touch()
                got[directory] = "can be written"
    return got


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(directory))
    except OSError:
        return []


def look_into_processes(processes: list[int]) -> Got:
    """What it can read of other processes beside their command lines, which are read by `command_lines`."""
    got: Got = {}
    for process in processes:
        for name in ("environ", "mem", "maps", "stack"):
            with contextlib.suppress(OSError), Path(f"/proc/{process}/{name}").open("rb") as file:
                if content := file.read(_BYTES):
                    got[f"{process} {name}"] = content.decode("latin-1")
        for name in ("fd", "map_files"):
            with contextlib.suppress(OSError):
                got[f"{process} {name}"] = sorted(os.listdir(f"/proc/{process}/{name}"))  # noqa: PTH208
        with contextlib.suppress(OSError):
            os.kill(process, 0)
            got[f"{process} signal"] = "can be sent"
    return got


def command_lines(processes: list[int]) -> Got:
    """The command lines of processes, which every account of a machine can read."""
    got = {}
    for process in processes:
        with contextlib.suppress(OSError):
            got[str(process)] = Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    return got


def connect_to_sockets(paths: list[str]) -> Got:
    """The UNIX sockets that take its connection."""
    got = {}
    for path in paths:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            got[path] = "connected"
    return got


def connect_to_addresses(addresses: list[tuple[str, int]]) -> Got:
    """The TCP addresses that take its connection."""
    got = {}
    for host, port in addresses:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=2):
            got[f"{host} {port}"] = "connected"
    return got


def become_the_server(ports: list[int]) -> Got:
    """The addresses on which it can wait for what is meant for the pipeline, with the options that let most through."""
    got = {}
    for port in ports:
        for family, host in (
            (socket.AF_INET, "127.0.0.1"),
            (socket.AF_INET, "0.0.0.0"),
            (socket.AF_INET6, "::1"),
            (socket.AF_INET6, "::"),
        ):
            with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:
                    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                server.bind((host, port))
                server.listen()
                got[f"{host} {port}"] = "taken"
    return got


def race(wanted: dict[str, Any]) -> Got:
    """Try to take the ports, and to read shared memory, again and again until a file is there."""
    got: Got = {}
    tries = 0
    seen: set[str] = set()
    while not Path(wanted["until"]).exists():
        tries += 1
        got |= become_the_server(wanted["ports"])
        for entry in _entries("/dev/shm"):
            if entry.name.startswith(wanted["memory"]):
                seen.add(entry.name)
                with contextlib.suppress(OSError), Path(entry.path).open("rb"):
                    got[entry.path] = "opened"
        time.sleep(0.001)
    return {"got": got, "tries": tries, "seen": sorted(seen)}


TRIES: dict[str, Callable[[Any], Got]] = {
    function.__name__: function
    for function in (
        read_everything,
        write_anything,
        look_into_processes,
        command_lines,
        connect_to_sockets,
        connect_to_addresses,
        become_the_server,
        race,
    )
}


def main(user: int) -> None:
    """Become the account, and do what is asked."""
    asked = json.load(sys.stdin)
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    os.chdir("/")
    print(json.dumps({name: TRIES[name](argument) for name, argument in asked.items()}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
