"""Starts the servers that are measured, waits for them, and ends them whatever happens."""

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

from errors import PipelineError
from serving.die_with_parent import command_dying_with_parent
from settings import ENV_PREFIX

PROJECT = Path(__file__).resolve().parent.parent

_GRACE_S = 30.0
_IDLE_SHARE = 0.4
"""Of one core: what a server that waits for requests may use. LitServe polls, with a fifth of a core."""
_IDLE_PROBE_S = 0.25
_LONGEST_SETTLING_S = 20.0
_LOG_TAIL_LINES = 8
# By the process id, so that two runs on one machine rarely try the same; below the ports that systems give out.
_ports = iter(range(18_000 + os.getpid() % 5_000, 32_000))


@dataclass
class Server:
    """A running server with a process group of its own."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int

    @property
    def url(self) -> str:
        """Where it answers HTTP."""
        return f"http://127.0.0.1:{self.port}"

    def wait_until_answering(self, path: str, timeout_s: float) -> None:
        """Wait until a GET of `path` is answered with 200.

        Raises:
            PipelineError: the server ended, or took too long; the end of its log is told.
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
        """Wait until it no longer works on what a load left behind, such as requests whose client is gone."""
        deadline = time.monotonic() + _LONGEST_SETTLING_S
        busy = True
        while busy and time.monotonic() < deadline:
            before = self._cpu_seconds()
            time.sleep(_IDLE_PROBE_S)
            busy = self._cpu_seconds() - before > _IDLE_SHARE * _IDLE_PROBE_S

    def suspend(self) -> None:
        """Stop all its processes where they are, for some poll even while nobody asks them anything."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        """Let its processes go on."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def memory_bytes(self) -> int:
        """Memory that its processes hold; what two share counts once for each."""
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
    """Run a server in `directory`, where its log goes too; end it and its children afterwards."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / f"{name}.log"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            # Where this process is killed, nobody is left to end the server.
            command_dying_with_parent(list(command)),
            cwd=directory,
            env=inherited | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C in the terminal reaches this process alone, which ends the server in order.
            start_new_session=True,
        )
    server = Server(process, log, port)
    try:
        yield server
    finally:
        server.resume()  # what is suspended hears no signal
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def running_pipeline(repository: Path, directory: Path, settings: dict[str, str] | None = None) -> Iterator[Server]:
    """Run `python app.py serve` for what is deployed in `repository`; it may not answer yet."""
    port = free_ports(4)
    environment = {
        "SENTIMENT_MODEL_REPOSITORY": str(repository),
        "SENTIMENT_STATE_DIR": str(directory / "state"),
        "SENTIMENT_PORT": str(port),
        "SENTIMENT_TRITON_HTTP": "true",
    } | (settings or {})
    # In a directory without `.env`, so that the settings are the defaults but for these.
    command = [sys.executable, str(PROJECT / "app.py"), "serve"]
    with running(command, port, directory, "pipeline", environment) as server:
        yield server


def free_ports(count: int) -> int:
    """The first of so many free ports in a row; none is given twice, for who was given one may not listen yet."""
    for first in _ports:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in (first, *islice(_ports, count - 1)):
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
            return first
    raise PipelineError(f"There are no {count} free ports in a row.")
