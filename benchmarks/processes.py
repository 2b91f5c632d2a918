"""Starts the servers under test, waits for them, and always stops them."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import httpx
import psutil

from common.errors import PipelineError
from common.home import HOME
from common.settings import ENV_PREFIX
from serving.host.die_with_parent import command_dying_with_parent

PROJECT = Path(__file__).resolve().parent.parent

_GRACE_S = 30.0
_IDLE_SHARE = 0.4
"""Share of one core that an idle server may use. LitServe polls, which takes a fifth of a core."""
_IDLE_PROBE_S = 0.25
_LONGEST_SETTLING_S = 20.0
_LOG_TAIL_LINES = 8
# Start at a port derived from the process id, to avoid collisions between runs; stay below the ephemeral ports.
_ports = iter(range(18_000 + os.getpid() % 5_000, 32_000))


@dataclass
class Server:
    """A running server with its own process group."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int

    @property
    def url(self) -> str:
        """Base URL of the HTTP server."""
        return f"http://127.0.0.1:{self.port}"

    def wait_until_answering(self, path: str, timeout_s: float) -> None:
        """Wait until a GET of `path` returns 200.

        Raises:
            PipelineError: the server ended, or took too long; the message has the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        with httpx.Client(base_url=self.url, timeout=5, trust_env=False) as client:
            while time.monotonic() < deadline and self.process.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    if client.get(path).status_code == 200:
                        return
                time.sleep(0.05)
        tail = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL_LINES:])
        raise PipelineError(f"No answer from {self.url}{path}. The end of {self.log}:\n{tail}")

    def settle(self) -> None:
        """Wait until the server is idle after a load; it may still process requests of disconnected clients."""
        deadline = time.monotonic() + _LONGEST_SETTLING_S
        busy = True
        while busy and time.monotonic() < deadline:
            before = self._cpu_seconds()
            time.sleep(_IDLE_PROBE_S)
            busy = self._cpu_seconds() - before > _IDLE_SHARE * _IDLE_PROBE_S

    def suspend(self) -> None:
        """Suspend all processes of the server, because some poll even without requests."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        """Resume all processes of the server."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def memory_bytes(self) -> int:
        """Return the resident memory of the server's processes; shared memory counts once per process."""
        used = 0
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                used += process.memory_info().rss
        return used

    def _cpu_seconds(self) -> float:
        used = 0.0
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                used += times.user + times.system
        return used

    def _processes(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@contextlib.contextmanager
def running(
    command: Sequence[str], port: int, directory: Path, name: str, environment: dict[str, str] | None = None
) -> Iterator[Server]:
    """Run a server in `directory`, with its log there; stop it and its children afterwards."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / f"{name}.log"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            # If this process is killed, the server must end too.
            command_dying_with_parent(list(command)),
            cwd=directory,
            env=inherited | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C in the terminal must only reach this process, which shuts the server down cleanly.
            start_new_session=True,
        )
    server = Server(process, log, port)
    try:
        yield server
    finally:
        server.resume()  # suspended processes do not handle signals
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def running_pipeline(repository: Path, directory: Path) -> Iterator[Server]:
    """Run `python app.py serve` with the deployed version of `repository`; it may not be ready yet."""
    port = free_ports(4)
    environment = {
        HOME: str(directory),  # it has no `.env`, so all other settings keep their defaults
        "SENTIMENT_MODEL_REPOSITORY": str(repository),
        "SENTIMENT_STATE_DIR": str(directory / "state"),
        "SENTIMENT_PORT": str(port),
    }
    command = [sys.executable, str(PROJECT / "app.py"), "serve"]
    with running(command, port, directory, "pipeline", environment) as server:
        yield server


def free_ports(count: int) -> int:
    """Return the first of `count` consecutive free ports; never return a port twice, as its server may start late."""
    for first in _ports:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in (first, *islice(_ports, count - 1)):
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
            return first
    raise PipelineError(f"There are no {count} free ports in a row.")
