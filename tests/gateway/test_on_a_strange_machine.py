"""A gateway as a process of its own, where the machine is set up in another way than most are."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import PROJECT, free_ports, wait_for
from tests.gateway.conftest import ADMIN_KEY
from tests.gateway.fake_triton import FakeTriton

DEAD_PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:9")
IDLE = 1_100
KEY = {"X-API-Key": ADMIN_KEY}

pytestmark = pytest.mark.full


@contextmanager
def gateway(
    directory: Path, triton: int, descriptors: tuple[int, int], **environment: str
) -> Iterator[tuple[int, Path]]:
    """Run `app.py gateway` before the Triton at a port, with these limits of open files; gives its port and its log."""
    port = free_ports()
    own = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    settings = {
        "SENTIMENT_PORT": str(port),
        "SENTIMENT_TRITON_URL": f"127.0.0.1:{triton}",
        "SENTIMENT_ADMIN_KEY": ADMIN_KEY,
    }
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, PROJECT / "app.py", "gateway"],
            cwd=directory,
            env=own | settings | environment,
            stdout=output,
            stderr=output,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, descriptors),
        )
    try:
        yield port, log
        assert process.poll() is None, log.read_text()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def ask(url: str, **headers: str) -> int:
    answer = httpx.post(f"{url}/predict/live", json={"text": "good"}, headers=headers, timeout=30, trust_env=False)
    return answer.status_code


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_proxies_lead_nowhere_and_triton_comes_later(host: str, tmp_path: Path) -> None:
    triton = FakeTriton()
    triton.port = free_ports()
    with gateway(tmp_path, triton.port, (1_024, 1_024), SENTIMENT_HOST=host, **DEAD_PROXIES) as (port, log):
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

        def is_live() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/health/live", trust_env=False).is_success
            return False

        wait_for(is_live, 60, "the gateway")
        assert ask(url) == 503
        assert "respond" not in log.read_text()  # nothing is wrong yet
        triton.start()
        try:
            wait_for(
                lambda: f"Ready: version 1 is deployed at {url} " in log.read_text(), 60, "the gateway to be ready"
            )
            assert ask(url) == 200
        finally:
            triton.stop()


@pytest.mark.parametrize("hard", [1_024, 4_096])
@pytest.mark.parametrize("headers", [{}, KEY], ids=["no key", "key"])
def test_more_idle_connections_than_open_files_leave_room_for_new_ones(
    hard: int, headers: dict[str, str], tmp_path: Path
) -> None:
    triton = FakeTriton()
    triton.start()
    request = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with contextlib.ExitStack() as open_, gateway(tmp_path, triton.port, (1_024, hard)) as (port, log):
        open_.callback(triton.stop)
        wait_for(lambda: "Ready" in log.read_text(), 60, "the gateway to be ready")
        for _ in range(IDLE):
            connection = open_.enter_context(socket.create_connection(("127.0.0.1", port), 20))
            connection.sendall(f"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{request}\r\n".encode())
            assert connection.recv(1_000).startswith(b"HTTP/1.1 200")
        for _ in range(3):
            assert ask(f"http://127.0.0.1:{port}") == 200
            models = httpx.get(f"http://127.0.0.1:{port}/models", headers=KEY, timeout=30, trust_env=False)
            assert models.is_success
        assert "Too many open files" not in log.read_text()
