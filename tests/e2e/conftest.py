"""The pipeline as a newcomer runs it: a copy of the checkout, `make run`, and minutes later an answer."""

import atexit
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import httpx
import psutil
import pytest
import trustme

from tests.mail_server import HOST, PASSWORD, MailServer, server_context
from tests.pages import PROJECT as PROJECT
from tests.pages import block, check_excerpt

TUTORIAL = "docs/tutorial.md"
_LOCKS = Path(tempfile.gettempdir()) / "sentiment-test-ports"
_taken = contextlib.ExitStack()
"""Locks of the ports that this process was given."""
atexit.register(_taken.close)


@dataclass
class Pipeline:
    """A running `make run` in a copy of the checkout."""

    checkout: Path
    port: int
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    log: Path
    mail_server: MailServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> list[psutil.Process]:
        """Everything that belongs to it: its descendants, Triton's session among them."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def triton(self) -> psutil.Process:
        return next(process for process in self.processes() if process.name() == "tritonserver")

    def shell(self, commands: str, settings: Mapping[str, str] = MappingProxyType({}), timeout_s: float = 300) -> str:
        """Run a block of a page in the checkout; only the port differs. Gives what it prints."""
        commands = commands.replace("localhost:8000", f"localhost:{self.port}")
        return run_block(commands, self.checkout, {**self.environment, **settings}, timeout_s)


def run_block(commands: str, directory: Path, environment: Mapping[str, str], timeout_s: float = 300) -> str:
    """Run a block of commands as a reader would, in the environment of the tests; gives what it prints."""
    completed = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=directory,
        env={**environment, "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    assert completed.returncode == 0, completed.stdout
    return completed.stdout


def own_environment() -> dict[str, str]:
    """The tests' environment without settings; its packages stand in for those that make would install.

    A job gets half of the machine, because it gives way to other tests as it does to a service.
    """
    # COLUMNS, which some tools set, would break the lines of tables that are compared with the pages.
    named = {name: value for name, value in os.environ.items() if not name.startswith(("SENTIMENT_", "COLUMNS"))}
    return named | {"VENV": sys.prefix, "SENTIMENT_JOB_CPU_SHARE": "0.5"}


def wait_for(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.1)


def free_ports(count: int = 4) -> int:
    """The first of so many free ports in a row; the gateway and Triton take four.

    They are below the range that the system gives to clients. Blocks of ten stay locked until this process ends, so
    that another test run beside this one, or a server that is started a moment later, gets other ports.
    """
    _LOCKS.mkdir(exist_ok=True)
    for first in range(10_000, 24_000 - count, 10):
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
            locks = [opened.enter_context((_LOCKS / str(block)).open("w")) for block in range(first, first + count, 10)]
            for lock in locks:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.ExitStack() as probes:
                for offset in range(count):
                    probes.enter_context(socket.socket()).bind(("127.0.0.1", first + offset))
            _taken.enter_context(opened.pop_all())
            return first
    raise AssertionError(f"no {count} free ports in a row")


def copy_checkout(target: Path) -> None:
    """Copy what git tracks or would track, and nothing that was made by running it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (PROJECT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, target / name)


@contextmanager
def running_pipeline(checkout: Path, timeout_s: float, **settings: str) -> Iterator[Pipeline]:
    """Have `make run` serve in a copy of the checkout, which tells people by a real mail server, during the block."""
    port = free_ports()
    authority = trustme.CA()
    mail_server = MailServer(server_context(authority))
    trusted = checkout / "authorities.pem"
    known = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    trusted.write_bytes((Path(known).read_bytes() if known else b"") + authority.cert_pem.bytes())
    environment = own_environment() | {
        "SENTIMENT_PORT": str(port),
        "SENTIMENT_SMTP_HOST": HOST,
        "SENTIMENT_SMTP_PORT": str(mail_server.port),
        "SENTIMENT_MAIL_USER": "loop@example.org",
        "SENTIMENT_MAIL_PASSWORD": PASSWORD,
        "SENTIMENT_MAIL_TO": "team@example.org",
        "SSL_CERT_FILE": str(trusted),
        **settings,
    }
    log = checkout / "make-run.log"
    with mail_server.running():
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["make", "run"],
                cwd=checkout,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def ready_or_ended() -> bool:
            return "Ready: version" in log.read_text() or process.poll() is not None

        try:
            wait_for(ready_or_ended, timeout_s, "make run to be ready")
            assert process.poll() is None, log.read_text()
            assert httpx.get(f"http://127.0.0.1:{port}/health/ready").is_success
            yield Pipeline(checkout, port, environment, process, log, mail_server)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    raise


@contextmanager
def tutorial_pipeline(checkout: Path, **settings: str) -> Iterator[Pipeline]:
    """Run what the tutorial begins with, in an empty directory, during the block."""
    copy_checkout(checkout)
    (checkout / ".venv").symlink_to(sys.prefix)
    # The tutorial's first steps: a slice of the data, small enough to be learnt within a minute.
    printed = run_block(block(TUTORIAL, "make install"), checkout, own_environment())
    check_excerpt(TUTORIAL, "make install", printed)
    with running_pipeline(checkout, 900, **settings) as running:
        yield running


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    # int8 and OpenVINO, which have tests of their own, would take another minute in each export.
    directory = tmp_path_factory.mktemp("checkout")
    with tutorial_pipeline(directory, SENTIMENT_PRECISION="float32", SENTIMENT_RUNTIME="onnxruntime") as running:
        yield running


@pytest.fixture
def http(pipeline: Pipeline) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=pipeline.url, timeout=15) as client:
        yield client
